"""Merging by place, against the published code's vectors and loops over windows."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.golden_cases import folders, group, meta
from tokcomp.ops.merging import apply_selection, compose_source
from tokcomp.ops.pooling import average_pool, merge_windows, window_members
from tokcomp.testing.vision_views import random_view

UNITS = [(folder, case) for folder in folders("mustdrop_units") for case in meta(folder).get("merge", {})]


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), UNITS, ids=lambda value: getattr(value, "name", value))
def test_golden_units(folder: Path, case: str) -> None:
    params, vectors = meta(folder)["merge"][case], group(folder, case)
    x, patches = vectors["x"], vectors["x"][:, 1:]
    b, n = patches.shape[:2]
    window = tuple(params["window"])
    grid = (params["grid"], params["grid"])
    selection = merge_windows(patches, grid, window, params["threshold"], batch_minimum=True)
    for size, y, size_out in (("", "y", "size"), ("size_in2", "y2", "size2")):
        if y not in vectors:
            continue
        sizes = vectors[size][..., 0] if size else torch.ones(b, 1 + n)
        merged, merged_sizes = apply_selection(patches, sizes[:, 1:], selection)
        torch.testing.assert_close(torch.cat([x[:, :1], merged], 1), vectors[y], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.cat([sizes[:, :1], merged_sizes], 1), vectors[size_out][..., 0])
    merged_windows = vectors["merged_windows"]
    last = window_members(grid, window)[:, -1]
    assert torch.equal(selection.keep[:, : merged_windows.shape[1]], last[merged_windows])
    source = 1 + compose_source(torch.arange(n).expand(b, n), selection, n)
    expected = vectors["membership"]
    if expected.dim() == 3:  # 0/1 rows, or each token's output row where those would be large
        expected = expected.long().argmax(dim=1)
    assert torch.equal(source, expected[:, 1:].long())


VISION = [
    (folder, case["name"])
    for folder in folders("mustdrop_vision")
    for case in meta(folder)["cases"]
    if "merged" in case["tensors"]
]


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "name"), VISION, ids=lambda value: getattr(value, "name", value))
def test_golden_vision(folder: Path, name: str) -> None:
    params = next(case["params"] for case in meta(folder)["cases"] if case["name"] == name)
    vectors = group(folder, name)
    x, side = vectors["x"], params["grid"]
    selection = merge_windows(x[:, 1:], (side, side), tuple(params["window"]), params["threshold"], batch_minimum=True)
    merged, sizes = apply_selection(x[:, 1:], torch.ones(x.shape[0], side * side), selection)
    torch.testing.assert_close(torch.cat([x[:, :1], merged], 1), vectors["merged"], atol=1e-5, rtol=1e-5)
    if "size" in vectors:
        assert torch.equal(sizes, vectors["size"][:, 1:, 0])


def loop_windows(grid: tuple[int, int], window: tuple[int, int]) -> list[list[int]]:
    (rows, columns), (high, wide) = grid, window
    return [
        [(top + y) * columns + left + x for y in range(high) for x in range(wide)]
        for top in range(0, rows - high + 1, high)
        for left in range(0, columns - wide + 1, wide)
    ]


def loop_scores(tokens: dict[int, Tensor], windows: list[list[int]]) -> dict[int, float]:
    """Mean cosine over the ordered pairs of each window whose patches are all in ``tokens``."""
    scores = {}
    for number, patches in enumerate(windows):
        if all(patch in tokens for patch in patches):
            pairs = [
                float(torch.cosine_similarity(tokens[i].double(), tokens[j].double(), dim=0))
                for i, j in itertools.permutations(patches, 2)
            ]
            scores[number] = sum(pairs) / len(pairs)
    return scores


@settings(max_examples=60, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    window=st.sampled_from([(2, 2), (3, 3), (2, 3)]),
    threshold=st.sampled_from([-1.0, 0.3, 0.5, 0.7, 2.0]),
    order=st.sampled_from(["published", "image"]),
    fewer=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    merged=st.booleans(),
    protected=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_windows_equal_the_loop(
    grid: tuple[int, int],
    window: tuple[int, int],
    threshold: float,
    order: Literal["image", "published"],
    fewer: list[int],
    merged: bool,
    protected: bool,
    seed: int,
) -> None:
    counts = [max(1, grid[0] * grid[1] - less) for less in fewer]
    view = random_view(counts, grid, seed=seed, merged=merged, protected=protected)
    selection = merge_windows(view.tokens, grid, window, threshold, order=order, valid=view.valid, sizes=view.sizes,
                              origin=view.origin, protected=view.protected)  # fmt: skip
    selection.check(view.n_tokens, batch_size=view.batch_size, valid=view.valid)
    windows = loop_windows(grid, window)
    for row, count in enumerate(counts):
        patch_of = view.origin[row, :count].tolist()
        single = {
            patch_of[i]: view.tokens[row, i]
            for i in range(count)
            if view.sizes[row, i] == 1 and not view.protected[row, i]
        }
        scores = loop_scores(single, windows)
        assume(all(abs(score - threshold) > 1e-5 for score in scores.values()))
        picked = sorted((w for w in scores if scores[w] >= threshold), key=lambda w: -scores[w])
        assume(all(scores[a] - scores[b] > 1e-6 for a, b in itertools.pairwise(picked)))
        taken = {patch: windows[w][-1] for w in picked for patch in windows[w]}
        rest = [patch for patch in patch_of if patch not in taken]
        standing = [windows[w][-1] for w in picked] + rest
        standing = sorted(standing) if order == "image" else standing
        assert [patch_of[i] for i in selection.keep[row].tolist() if i >= 0] == standing
        slots = [standing.index(taken.get(patch, patch)) for patch in patch_of]
        assert selection.assign[row].tolist() == slots + [-1] * (view.n_tokens - count)


def test_batch_minimum_merges_the_best_of_each_image() -> None:
    view = random_view([36, 36, 36], (6, 6), seed=3)
    own = merge_windows(view.tokens, (6, 6), (2, 2), 0.7)
    least = merge_windows(view.tokens, (6, 6), (2, 2), 0.7, batch_minimum=True)
    merged = ((36 - (own.keep >= 0).sum(1)) // 3).tolist()
    assert len(set(merged)) > 1  # else this image batch shows nothing
    fewest = min(merged)
    assert least.keep.shape[1] == 36 - 3 * fewest
    assert torch.equal(least.keep[:, :fewest], own.keep[:, :fewest])


@pytest.mark.parametrize("threshold", [-1.0, 2.0])
def test_all_windows_and_none(threshold: float) -> None:
    view = random_view([49, 49], (7, 7))
    selection = merge_windows(view.tokens, (7, 7), (3, 3), threshold)
    if threshold > 1:
        assert selection.keep.tolist() == [list(range(49))] * 2
    else:
        assert selection.keep.shape == (2, 49 - 4 * 8)
    assert not selection.ragged


def test_equal_scores_stand_in_raster_order() -> None:
    selection = merge_windows(torch.ones(1, 16, 3), (4, 4), (2, 2), 0.5)
    assert selection.keep.tolist() == [[5, 7, 13, 15]]


def test_window_members() -> None:
    assert window_members((3, 5), (2, 2)).tolist() == [[0, 1, 5, 6], [2, 3, 7, 8]]
    assert window_members((1, 5), (2, 2)).shape == (0, 4)


@pytest.mark.parametrize("grid", [(4, 4), (5, 7), (1, 1), (1, 6), (7, 3)])
@pytest.mark.parametrize("window", [(1, 1), (2, 2), (3, 3), (2, 3)])
def test_average_pool_equals_torch(grid: tuple[int, int], window: tuple[int, int]) -> None:
    """``avg_pool2d`` with ceil_mode averages what an edge block has, if padding is not counted."""
    view = random_view([grid[0] * grid[1]] * 2, grid, merged=True)
    selection = average_pool(grid, window, view.origin, view.valid)
    selection.check(view.n_tokens, batch_size=2)
    pooled, sizes = apply_selection(view.tokens, view.sizes, selection)
    image = view.tokens.transpose(1, 2).unflatten(2, grid)
    expected = torch.nn.functional.avg_pool2d(image, window, ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(pooled, expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)
    assert torch.equal(sizes.sum(1), view.sizes.sum(1))


@settings(max_examples=40, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    window=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    fewer=st.lists(st.integers(0, 20), min_size=1, max_size=3),
    seed=st.integers(0, 10_000),
)
def test_average_pool_equals_the_loop(
    grid: tuple[int, int], window: tuple[int, int], fewer: list[int], seed: int
) -> None:
    counts = [max(1, grid[0] * grid[1] - less) for less in fewer]
    view = random_view(counts, grid, seed=seed, merged=True)
    selection = average_pool(grid, window, view.origin, view.valid)
    selection.check(view.n_tokens, batch_size=len(counts), valid=view.valid)
    pooled, _ = apply_selection(view.tokens, view.sizes, selection)
    for row, count in enumerate(counts):
        blocks: dict[tuple[int, int], list[int]] = {}
        for i, patch in enumerate(view.origin[row, :count].tolist()):
            blocks.setdefault((patch // grid[1] // window[0], patch % grid[1] // window[1]), []).append(i)
        present = [blocks[key] for key in sorted(blocks)]
        assert [i for i in selection.keep[row].tolist() if i >= 0] == [members[0] for members in present]
        for slot, members in enumerate(present):
            torch.testing.assert_close(pooled[row, slot], view.tokens[row, members].mean(0), atol=1e-5, rtol=1e-5)
