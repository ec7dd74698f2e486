"""The uniform control, against the rule in plain python."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokcomp import Site
from tokcomp.errors import CompatibilityError
from tokcomp.testing.vision_views import random_view
from tokcomp.vision.uniform import Uniform


def middles(n: int, k: int) -> list[int]:
    return [(2 * i + 1) * n // (2 * k) for i in range(k)]


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=3), tokens=st.integers(1, 40))
def test_line_equals_the_rule(counts: list[int], tokens: int) -> None:
    view = random_view(counts, (6, 5))
    selection = Uniform(keep_tokens=tokens).reduce(view)
    selection.check(view.n_tokens, batch_size=len(counts), valid=view.valid)
    for row, count in enumerate(counts):
        kept = middles(count, min(tokens, count))
        assert selection.keep[row].tolist() == kept + [-1] * (selection.keep.shape[1] - len(kept))
        assert len(set(kept)) == len(kept)


@settings(max_examples=80, deadline=None)
@given(grid=st.tuples(st.integers(1, 12), st.integers(1, 12)), share=st.floats(0.01, 1.0))
def test_lattice_equals_the_rule(grid: tuple[int, int], share: float) -> None:
    rows, columns = grid
    k = min(max(round(rows * columns * share), 1), rows * columns)
    high = min(rows, k, max(1, round((k * rows / columns) ** 0.5)))
    wide = min(columns, k // high)
    expected = [row * columns + column for row in middles(rows, high) for column in middles(columns, wide)]
    selection = Uniform(keep_ratio=share, layout="2d").reduce(random_view([rows * columns] * 2, grid))
    selection.check(rows * columns, batch_size=2)
    assert selection.keep.tolist() == [expected] * 2
    assert len(expected) <= k


@pytest.mark.parametrize(("tokens", "side"), [(144, 12), (64, 8), (576, 24), (1, 1)])
def test_square_budgets_are_exact_on_a_square_grid(tokens: int, side: int) -> None:
    keep = Uniform(keep_tokens=tokens, layout="2d").reduce(random_view([576], (24, 24))).keep
    assert keep.shape == (1, tokens)
    assert len((keep[0] // 24).unique()) == len((keep[0] % 24).unique()) == side


def test_lattice_follows_places_not_the_sequence() -> None:
    view = random_view([16], (4, 4))
    shuffled = torch.randperm(16)[None]
    keep = Uniform(keep_tokens=4, layout="2d").reduce(dataclasses.replace(view, origin=shuffled)).keep
    assert shuffled[0, keep[0]].sort().values.tolist() == [5, 7, 13, 15]


@pytest.mark.parametrize("counts", [[15], [16, 15]])
def test_lattice_needs_the_whole_grid(counts: list[int]) -> None:
    with pytest.raises(CompatibilityError, match="use layout=1d"):
        Uniform(layout="2d").reduce(random_view(counts, (4, 4)))


def test_acts_on_the_features() -> None:
    assert Uniform().sites(24) == (Site.features(),)
