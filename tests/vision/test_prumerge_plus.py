"""PruMerge+ against the published vectors and a plain loop."""

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
from tokcomp.testing.vision_views import random_view
from tokcomp.vision.prumerge_plus import PruMergePlus

CASES = [pytest.param(folder, case, id=f"{folder.name}-{case['name']}") for folder, case in cases("plus")]


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), CASES)
def test_published_vectors(folder: Path, case: dict[str, Any]) -> None:
    vectors = group(folder, case["name"])
    view = golden_view(vectors)
    selection = PruMergePlus().reduce(view)
    selection.check(view.n_tokens, batch_size=view.batch_size)
    assert torch.equal(selection.keep[:, :-1], vectors["idx"])
    k0 = vectors["top_idx"].shape[1]
    assert torch.equal(selection.keep[:, :k0], vectors["top_idx"])
    out, _ = apply_selection(view.tokens, view.sizes, selection)
    torch.testing.assert_close(out, vectors["out"], atol=2e-5, rtol=0)


def selected(scores: list[float], tokens: int | None) -> list[int]:
    """The rule, in the order of the result."""
    n, k = len(scores), outliers(scores)
    order = sorted(range(n), key=lambda i: (-scores[i], i))
    if tokens is not None:
        if tokens >= n:
            return list(range(n))
        first = order[: min(k, tokens - 1)]
        regular = range(0, n, max(1, n // max(1, tokens - 1)))
        return [*first, *(i for i in regular if i not in first)][: tokens - 1]
    if n == 1:
        return [0]
    first = order[:k]
    step = max(1, int(n / k) // 3) if k else n
    return [*first, *(i for i in range(0, n - 1, step) if i not in first)][: n - 1]


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=3), tokens=st.none() | st.integers(1, 45),
       seed=st.integers(0, 99))  # fmt: skip
def test_equals_the_plain_rule(counts: list[int], tokens: int | None, seed: int) -> None:
    view = random_view(counts, (5, 8), seed=seed)
    selection = PruMergePlus(keep_tokens=tokens).reduce(view)
    selection.check(view.n_tokens, batch_size=len(counts), valid=view.valid)
    out, sizes = apply_selection(view.tokens, view.sizes, selection)
    for row, count in enumerate(counts):
        chosen = selected(view.at(3).unsplit_attention[row, :count].tolist(), tokens)
        expected = plain(view, row, chosen)
        assert selection.keep[row, : len(chosen)].tolist() == chosen
        assert (
            int((selection.keep[row] >= 0).sum())
            == len(expected)
            == (len(expected) if tokens is None else min(tokens, count))
        )
        torch.testing.assert_close(out[row, : len(expected)], torch.stack(expected), atol=1e-5, rtol=1e-5)
        assert int(sizes[row].sum()) == count
