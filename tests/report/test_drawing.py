"""Tints, line breaks and layout."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokcomp import Pipeline
from tokcomp.report.figure import draw, panels_of
from tokcomp.report.header import wrap
from tokcomp.report.patches import group_tints
from tokcomp.report.story import CacheStory, Story
from tokcomp.report.style import LEFT, figure, styled


def story(grid: tuple[int, int] = (3, 5), cuts: tuple[int, ...] = (), depth: int = 12) -> Story:
    n = grid[0] * grid[1]
    alive = {layer: np.arange(n) >= number for number, layer in enumerate(cuts, start=1)}
    entering = [n - sum(cut < layer for cut in cuts) for layer in range(depth)]
    return Story(
        seen=np.full((grid[0] * 4, grid[1] * 4, 3), 0.2),
        grid=grid,
        question="what is it?",
        dense="a cat",
        compressed="a dog",
        owner=np.arange(n),
        keys=np.zeros(n, dtype=bool),
        alive=alive,
        vision_tokens=tuple(entering),
        image_tokens=n,
        after_vision=n,
        equivalent_tokens=sum(entering) / depth,
        cache=CacheStory(dense=(20, 25), prefill=(20.0,) * depth, end=(22.0,) * depth),
        new_tokens=(6, 3),
    )


def test_touching_groups_have_different_tints() -> None:
    owner = np.array([0, 0, 2, 2, 0, 0, 2, 2, 8, 8, 10, 10, 8, 8, 10, 15])
    merged, tints = group_tints(owner, (4, 4))
    assert merged.tolist() == [True] * 15 + [False]
    assert len({tuple(tints[group]) for group in (0, 2, 8, 10)}) == 4  # all four meet in the middle
    for group in (0, 2, 8, 10):
        assert len(np.unique(tints[owner == group], axis=0)) == 1


def test_dropped_patches_are_in_no_group() -> None:
    merged, tints = group_tints(np.array([-1, -1, 2, 3]), (2, 2))
    assert not merged.any()
    assert not tints.any()


def test_what_leaves_is_marked_and_what_stays_is_not() -> None:
    told = story(cuts=(3,))
    with styled():
        axes = figure(2, 2).add_axes((0, 0, 1, 1))
        panels_of(told, Pipeline(prefill="fastv"))[1].draw(axes)
    pixels = axes.images[0].get_array()
    vermillion = np.array([int(LEFT[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    np.testing.assert_allclose(pixels[0, 0], 0.38 * 0.2 + 0.62 * vermillion)
    np.testing.assert_allclose(pixels[0, 4:], 0.2)


def test_patches_keep_the_shape_of_the_picture() -> None:
    told = story(grid=(3, 5))
    told = dataclasses.replace(told, seen=np.zeros((33, 25, 3)))  # patches of 11 x 5 pixels
    with styled():
        axes = figure(2, 2).add_axes((0, 0, 1, 1))
        panels_of(told, Pipeline())[0].draw(axes)
    assert axes.get_aspect() == pytest.approx(11 / 5)


@pytest.mark.parametrize(("cuts", "shown"), [((3,), 1), (tuple(range(8)), 8), (tuple(range(11)), 8)])
def test_at_most_eight_cuts_are_shown(cuts: tuple[int, ...], shown: int) -> None:
    told, pipeline = story(cuts=cuts), Pipeline(prefill="fastv")
    titles = [panel.title for panel in panels_of(told, pipeline)][1:]
    assert len(titles) == shown
    assert titles[0].endswith(f"layer {cuts[0]}")
    assert titles[-1].endswith(f"layer {cuts[-1]}")


@pytest.mark.parametrize("grid", [(3, 5), (24, 24), (1, 40), (40, 1)])
def test_nothing_leaves_the_page(grid: tuple[int, int]) -> None:
    with styled():
        canvas = draw(story(grid, cuts=(1, 4)), Pipeline(prefill="fastv"), "tiny")
        renderer = canvas.canvas.get_renderer()
        width, height = canvas.bbox.width, canvas.bbox.height
        for part in _parts(canvas):
            box = part.get_window_extent(renderer)
            assert -1 <= box.x0 <= box.x1 <= width + 1
            assert -1 <= box.y0 <= box.y1 <= height + 1


def _parts(canvas: Any) -> list[Any]:
    return [*canvas.texts, *canvas.axes, *canvas.legends, *(text for axes in canvas.axes for text in axes.texts)]


@given(st.text(st.characters(codec="utf-8"), max_size=60), st.integers(4, 20), st.integers(1, 4))
def test_broken_lines_fit_and_lose_nothing(text: str, width: int, limit: int) -> None:
    lines = wrap(text, width, len, limit=limit)
    assert len(lines) <= limit
    assert all(len(line) <= width for line in lines)
    if not lines[-1].endswith("…"):
        assert "".join("".join(lines).split()) == "".join(text.split())
