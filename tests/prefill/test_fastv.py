"""FastV, against a loop over the published rule and against golden vectors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.golden_cases import folders, group, meta
from tokcomp import PREFILL
from tokcomp.errors import CompatibilityError
from tokcomp.prefill.fastv import FastV
from tokcomp.testing.prefill_views import alone, kept, random_view


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
    budget=st.sampled_from([{"keep_ratio": 0.5}, {"keep_ratio": 0.1}, {"keep_tokens": 1}, {"keep_tokens": 12}]),
    respects=st.booleans(),
)
def test_keeps_what_the_last_row_attends_to_most(
    counts: list[int], seed: int, budget: dict[str, float], respects: bool
) -> None:
    strategy = FastV(**budget, respects_protected=respects)
    view = random_view(counts, filter=strategy, seed=seed, protected=0.15)
    selection = strategy.filter(view)
    selection.check(view.n_tokens, batch_size=len(counts), valid=view.valid)
    for row, n in enumerate(counts):
        one = alone(view, row)
        scores = one.attention[0].mean(0)[-1].tolist()
        must = set(one.protected[0].nonzero()[:, 0].tolist()) if respects else set()
        k = budget.get("keep_tokens") or max(1, round(n * budget["keep_ratio"]))
        best = sorted(range(n), key=lambda j: (j not in must, -scores[j], j))
        assert kept(selection, view, row) == sorted(best[: max(min(k, n), len(must))])


def test_equal_scores_go_to_the_earlier_token() -> None:
    view = replace(random_view([6]), _attention=torch.tensor([0.1, 0.2, 0.1, 0.2, 0.1, 0.2]).expand(1, 2, 1, 6))
    assert FastV(keep_tokens=2).filter(view).keep.tolist() == [[1, 3]]
    assert FastV(keep_tokens=4).filter(view).keep.tolist() == [[0, 1, 3, 5]]


def test_fields() -> None:
    assert PREFILL["fastv"]().spec() == {
        "name": "fastv",
        "layer": 2,
        "keep_ratio": 0.5,
        "keep_tokens": None,
        "positions": "keep",
        "respects_protected": True,
        "budget_per": "prompt",
    }
    few = FastV.model_validate({"keep_tokens": 64})
    assert (few.keep_tokens, few.keep_ratio) == (64, None)
    assert FastV.model_validate({key: value for key, value in few.spec().items() if key != "name"}) == few
    with pytest.raises(ValidationError, match=r"keep_ratio \(0.5\) or keep_tokens \(64\), not both"):
        FastV(keep_tokens=64, keep_ratio=0.5)
    with pytest.raises(ValidationError, match="layer=0"):
        FastV(layer=0)


def test_tokens_leave_before_the_layer() -> None:
    assert FastV().acts_after(32) == (1,)
    assert FastV(layer=3).acts_after(32) == (2,)
    assert FastV(layer=-1).acts_after(32) == (30,)
    assert FastV(layer=0.25).acts_after(32) == (7,)
    with pytest.raises(CompatibilityError, match=r"prefill\.fastv\.layer=32"):
        FastV(layer=32).acts_after(32)
    with pytest.raises(CompatibilityError, match="the layer is at least 1"):
        FastV(layer=0.1).acts_after(8)


UNITS = [
    pytest.param(folder, case, id=case["name"]) for folder in folders("fastv_units") for case in meta(folder)["cases"]
]


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), UNITS)
def test_units_of_the_published_rule(folder: Path, case: dict) -> None:
    golden, params = group(folder, case["name"]), case["params"]
    start, n = params["image_start"], params["image_len"]
    # The published code reads the first sample of a batch only, so that is the row whose choice it gives.
    row = golden["attn_last_row"][:1, :, None, start : start + n]
    view = replace(random_view([n]), _attention=row, _rows=torch.ones(1, 1, dtype=torch.bool))
    by_ratio = FastV(keep_ratio=1 - params["prune_ratio"]).filter(view).keep[0]
    by_number = FastV(keep_tokens=params["keep"]).filter(view).keep[0]
    assert by_ratio.tolist() == by_number.tolist() == golden["kept_vision"].tolist()
    length = golden["attn_last_row"].shape[-1]
    sequence = torch.cat([torch.arange(start), by_ratio + start, torch.arange(start + n, length)])
    assert sequence.tolist() == golden["kept_sequence"].tolist()
    assert sequence.tolist() == golden["position_ids"][0].tolist()
    assert torch.equal(golden["hidden"][:, sequence], golden["hidden_out"])
