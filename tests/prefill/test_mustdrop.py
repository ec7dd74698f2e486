"""MustDrop's dual-attention filter, against a loop over the published rule and against golden vectors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from tests.golden_cases import folders, group, meta
from tokcomp import PREFILL, PrefillView
from tokcomp.errors import CompatibilityError
from tokcomp.prefill.mustdrop import MustDrop
from tokcomp.testing.prefill_views import alone, kept, random_view


def survivors(attention: Tensor, theta_g: float, theta_i: float, protected: list[bool]) -> list[int]:
    """The rule for one sample, ``attention`` ``[h, t, n]``, word by word."""
    mean = attention.double().mean(0)
    total = [float(mean[:, j].sum()) for j in range(mean.shape[1])]
    peak = [float(mean[:, j].max()) for j in range(mean.shape[1])]
    dropped = [g < theta_g * sum(total) and x < theta_i for g, x in zip(total, peak, strict=True)]
    stay = [j for j in range(len(total)) if not dropped[j] or protected[j]]
    return stay or [max(range(len(total)), key=lambda j: (total[j], -j))]


@settings(max_examples=80, deadline=None)
@given(
    counts=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    rows=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    seed=st.integers(0, 2**31),
    thresholds=st.tuples(st.sampled_from([0.0, 0.03, 0.1, 1.0]), st.sampled_from([0.0, 0.02, 0.1, 1.0])),
    respects=st.booleans(),
)
def test_keeps_what_the_rule_keeps(
    counts: list[int], rows: list[int], seed: int, thresholds: tuple[float, float], respects: bool
) -> None:
    strategy = MustDrop(global_threshold=thresholds[0], individual_threshold=thresholds[1], respects_protected=respects)
    view = random_view(counts, filter=strategy, rows=rows[: len(counts)], seed=seed, protected=0.2)
    selection = strategy.filter(view)
    selection.check(view.n_tokens, batch_size=len(counts), valid=view.valid)
    for row in range(len(counts)):
        one = alone(view, row)
        marks = one.protected[0].tolist() if respects else [False] * counts[row]
        assert kept(selection, view, row) == survivors(one.attention[0], *thresholds, marks)


def test_both_comparisons_are_strict() -> None:
    # Four equal tokens hold a quarter of the attention each: at theta_g = 1/4, or at theta_i = their peak, none leaves.
    attention = torch.full((1, 2, 2, 4), 0.125)
    view = replace(random_view([4], rows=[2]), _attention=attention)
    assert MustDrop(global_threshold=0.25, individual_threshold=1).filter(view).keep.tolist() == [[0, 1, 2, 3]]
    assert MustDrop(global_threshold=1, individual_threshold=0.125).filter(view).keep.tolist() == [[0, 1, 2, 3]]
    assert MustDrop(global_threshold=0.26, individual_threshold=0.126).filter(view).keep.tolist() == [[0]]


def test_without_text_nothing_is_dropped() -> None:
    view = random_view([6], rows=[2])
    empty = replace(view, _attention=view.attention[:, :, :0], _rows=view.rows[:, :0])
    strict = MustDrop(global_threshold=1, individual_threshold=1)
    assert strict.filter(empty).keep.tolist() == [list(range(6))]
    mixed = random_view([6, 6], rows=[2, 2])
    silent = mixed.rows & torch.tensor([[True], [False]])
    mixed = replace(mixed, _rows=silent, _attention=mixed.attention * silent[:, None, :, None])
    assert (strict.filter(mixed).keep >= 0).sum(dim=1).tolist() == [1, 6]


def test_the_published_setting() -> None:
    strategy = PREFILL["mustdrop"]()
    assert strategy.spec() == {
        "name": "mustdrop",
        "layers": None,
        "global_threshold": 0.001,
        "individual_threshold": 0.001,
        "positions": "renumber",
        "respects_protected": True,
        "budget_per": "prompt",
    }
    assert strategy.queries == "text"


@pytest.mark.parametrize(
    ("depth", "layers"), [(32, (2, 6, 10, 14)), (40, (2, 7, 12, 17)), (16, (1, 3, 5, 7)), (4, (0, 1)), (1, (0,))]
)
def test_published_layers_are_scaled_to_the_depth(depth: int, layers: tuple[int, ...]) -> None:
    assert MustDrop().acts_after(depth) == layers


def test_given_layers_are_taken_as_given() -> None:
    assert MustDrop(layers=(-1, 3, 0.25, 3)).acts_after(8) == (2, 3, 7)
    with pytest.raises(CompatibilityError, match=r"prefill\.mustdrop\.layers=14"):
        MustDrop(layers=(2, 14)).acts_after(12)
    with pytest.raises(ValidationError, match="layers"):
        MustDrop(layers=())


def of_one_sample(attention: Tensor, protected: Tensor | None = None) -> PrefillView:
    """A view of ``attention`` ``[h, t, n]`` and of nothing else that matters."""
    n = attention.shape[-1]
    marks = torch.zeros(n, dtype=torch.bool)
    if protected is not None:
        marks[protected] = True
    return replace(
        random_view([n]),
        _attention=attention[None],
        _rows=torch.ones(1, attention.shape[1], dtype=torch.bool),
        protected=marks[None],
    )


UNITS = [
    pytest.param(folder, case, id=f"{folder.name}-{case}")
    for folder in folders("mustdrop_units")
    for case in meta(folder).get("filter", {})
    if "attn_text_rows" in group(folder, case)
]


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), UNITS)
def test_units_of_the_published_filter(folder: Path, case: str) -> None:
    golden, params = group(folder, case), meta(folder)["filter"][case]
    start, n = params["v_token_start"], params["img_seq"]
    view = of_one_sample(golden["attn_text_rows"][0, :, :, start : start + n], golden["key_set"])
    thresholds = {"global_threshold": params["global_thr"], "individual_threshold": params["individual_thr"]}
    important = MustDrop(**thresholds, respects_protected=False).filter(view).keep[0]
    union = MustDrop(**thresholds).filter(view).keep[0]
    assert important.tolist() == golden["important"].tolist()
    assert union.tolist() == golden["union"].tolist()
    assert torch.isin(union, golden["key_set"]).nonzero()[:, 0].tolist() == golden["new_key_set"].tolist()


CHAINS = [
    pytest.param(folder, case, id=f"{folder.name}-{case['name']}")
    for folder in folders("mustdrop_prefill")
    for case in meta(folder)["cases"]
]


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), CHAINS)
def test_stages_of_the_published_filter(folder: Path, case: dict) -> None:
    golden, params = group(folder, case["name"]), case["params"]
    thresholds = {"global_threshold": params["global_thr"], "individual_threshold": params["individual_thr"]}
    keys, stage = golden["key_set"], 0
    while f"attn_text_vision_{stage}" in golden:
        view = of_one_sample(golden[f"attn_text_vision_{stage}"], keys)
        important = MustDrop(**thresholds, respects_protected=False).filter(view).keep[0]
        keep = MustDrop(**thresholds).filter(view).keep[0]
        keys = view.protected[0, keep].nonzero()[:, 0]
        assert important.tolist() == golden[f"important_{stage}"].tolist()
        assert keep.tolist() == golden[f"kept_{stage}"].tolist()
        assert keys.tolist() == golden[f"key_set_{stage}"].tolist()
        stage += 1
    assert stage == len(params["pruning_layers"])
