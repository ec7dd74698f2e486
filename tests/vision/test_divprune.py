"""DivPrune against the published vectors and a plain loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.golden_cases import folders, group, meta
from tokcomp import Site
from tokcomp.ops.diversity import farthest_points
from tokcomp.testing.vision_views import random_view
from tokcomp.vision.divprune import DivPrune

CASES = [pytest.param(folder, case, id=f"{folder.name}-{case['name']}")
         for folder in folders("divprune") for case in meta(folder)["cases"]]  # fmt: skip


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), CASES)
def test_published_vectors(folder: Path, case: dict[str, Any]) -> None:
    vectors, params = group(folder, case["name"]), case["params"]
    b, n, _ = vectors["features"].shape
    view = replace(random_view([n] * b, (1, n), site=Site.projected()), tokens=vectors["features"])
    strategy = DivPrune(keep_ratio=params["ratio"])
    assert torch.equal(strategy.reduce(view).keep, vectors["kept"])
    assert torch.equal(farthest_points(view.tokens, params["kept"], view.valid), vectors["order"])


def plain(features: Tensor, tokens: int) -> list[int]:
    """The rule for one image, token by token."""
    n, unit = len(features), torch.nn.functional.normalize(features, dim=-1)
    far = [[1 - float(unit[i] @ unit[j]) for j in range(n)] for i in range(n)]
    gap = [min((far[i][j] for j in range(n) if j != i), default=0.0) for i in range(n)]
    chosen = [gap.index(max(gap))]
    while len(chosen) < tokens:
        gap = [-1.0 if i in chosen else min(far[i][j] for j in chosen) for i in range(n)]
        chosen.append(gap.index(max(gap)))
    return sorted(chosen)


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(1, 20), min_size=1, max_size=3), tokens=st.integers(1, 25), seed=st.integers(0, 99))
def test_equals_the_plain_rule(counts: list[int], tokens: int, seed: int) -> None:
    view = random_view(counts, (4, 5), site=Site.projected(), seed=seed)
    selection = DivPrune(keep_tokens=tokens).reduce(view)
    selection.check(view.n_tokens, batch_size=len(counts), valid=view.valid)
    for row, count in enumerate(counts):
        kept = [i for i in selection.keep[row].tolist() if i >= 0]
        assert kept == plain(view.tokens[row, :count], min(tokens, count))


def test_duplicates_are_never_chosen_twice() -> None:
    view = replace(random_view([6], (2, 3), site=Site.projected()), tokens=torch.ones(1, 6, 4))
    assert DivPrune(keep_tokens=4).reduce(view).keep.tolist() == [[0, 1, 2, 3]]
