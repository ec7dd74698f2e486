"""PruMerge against the published vectors and a plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.golden_cases import group
from tests.vision.prumerge_cases import cases, golden_view, outliers, plain
from tokcomp.ops.merging import apply_selection
from tokcomp.ops.neighbours import take_up_neighbours
from tokcomp.ops.outliers import outlier_counts
from tokcomp.testing.vision_views import random_view
from tokcomp.vision.prumerge import PruMerge

CASES = [pytest.param(folder, case, id=f"{folder.name}-{case['name']}") for folder, case in cases("plain")]


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), CASES)
def test_published_vectors(folder: Path, case: dict[str, Any]) -> None:
    vectors, params = group(folder, case["name"]), case["params"]
    view = golden_view(vectors)
    k = vectors["idx"].shape[1]
    b, n = view.valid.shape
    if params["adaptive"] and b > 1:  # the code's quartiles are those of the batch
        last = view.at(23)
        assert outlier_counts(last.unsplit_attention, view.valid, over_batch=True).tolist() == [k] * b
        order = last.unsplit_attention.sort(dim=1, descending=True, stable=True).indices
        rank = torch.full((b, n), -1).scatter(1, order[:, :k], torch.arange(k).expand(b, k))
        selection = take_up_neighbours(rank, last.unsplit_attention, last.unsplit_keys, view.valid)
    else:
        strategy = PruMerge() if params["adaptive"] else PruMerge(keep_tokens=int(n * params["reduction_ratio"]) + 1)
        selection = strategy.reduce(view)
    selection.check(n, batch_size=b)
    assert torch.equal(selection.keep[:, :-1], vectors["idx"])
    out, _ = apply_selection(view.tokens, view.sizes, selection)
    torch.testing.assert_close(out, vectors["out"], atol=2e-5, rtol=0)


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=3), tokens=st.none() | st.integers(1, 45),
       neighbours=st.integers(0, 40), seed=st.integers(0, 99))  # fmt: skip
def test_equals_the_plain_rule(counts: list[int], tokens: int | None, neighbours: int, seed: int) -> None:
    view = random_view(counts, (5, 8), seed=seed)
    selection = PruMerge(keep_tokens=tokens, neighbours=neighbours).reduce(view)
    selection.check(view.n_tokens, batch_size=len(counts), valid=view.valid)
    out, sizes = apply_selection(view.tokens, view.sizes, selection)
    for row, count in enumerate(counts):
        scores = view.at(3).unsplit_attention[row, :count].tolist()
        k = (outliers(scores) if count > 1 else 1) if tokens is None else tokens - 1 if tokens < count else count
        expected = plain(view, row, sorted(range(count), key=lambda i: (-scores[i], i))[:k], neighbours)
        torch.testing.assert_close(out[row, : len(expected)], torch.stack(expected), atol=1e-5, rtol=1e-5)
        assert int((selection.keep[row] >= 0).sum()) == len(expected)
        assert int(sizes[row].sum()) == count


def test_quartiles_are_an_images_own() -> None:
    scores = torch.rand(3, 64).square().square()
    valid = torch.arange(64) < torch.tensor([[64], [40], [64]])
    expected = [outliers(row[mask].tolist()) for row, mask in zip(scores, valid, strict=True)]
    assert outlier_counts(scores, valid).tolist() == expected
    assert max(expected) > 0
