"""SparseVLM, against a loop over the paper's rule and against golden vectors."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from tests.golden_cases import group, listed_cases
from tokcomp import PREFILL, Pipeline, PrefillView, Selection
from tokcomp.experiment.compose import compose
from tokcomp.measure.schedule import expected_workload
from tokcomp.measure.shape import named_shape
from tokcomp.ops.merging import apply_selection
from tokcomp.ops.recycling import recycle
from tokcomp.prefill.sparsevlm import SparseVLM
from tokcomp.specs import build_strategy
from tokcomp.testing.prefill_views import alone, kept, random_view


def raters_of(vision: Tensor, text: Tensor) -> list[int]:
    """The rater rule for one sample, token by token."""
    weight = [0.0] * len(text)
    for token in vision.double():
        for i, share in enumerate((text.double() @ token).softmax(0).tolist()):
            weight[i] += share / len(vision)
    above = [i for i, w in enumerate(weight) if w > sum(weight) / len(weight)]
    return above or list(range(len(text)))


def survivors(view: PrefillView, raters: list[int], k: int | None, scale: float, bias: float) -> list[int]:
    """The tokens that one sample keeps, recycled ones left out."""
    rated = view.attention[0].mean(0)[raters]  # (r, n)
    n = rated.shape[1]
    if k is None:
        rank = int(torch.linalg.matrix_rank(rated))
        k = n if rank == n else min(math.trunc(rank * scale + bias), n - 1)
    else:
        k = min(k, n - 1)
    score = rated.mean(0).tolist()
    return sorted(sorted(range(n), key=lambda j: (-score[j], j))[: max(k, 1)])


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
    setting=st.sampled_from([(None, 2.0, 1.0), (None, 0.0, 0.0), (None, 30.0, 0.0), ((9, 4), 0.0, 0.0)]),
    recycled=st.booleans(),
)
def test_keeps_what_the_raters_look_at(
    counts: list[int], seed: int, setting: tuple[tuple[int, ...] | None, float, float], recycled: bool
) -> None:
    table, scale, bias = setting
    strategy = SparseVLM(layers=(1, 4), keep_tokens=table, scale=scale, bias=bias, recycle=0.3 if recycled else 0)
    view = random_view(counts, filter=strategy, seed=seed)
    selection = strategy.filter(view)
    selection.check(view.n_tokens, batch_size=len(counts), valid=view.valid)
    for row, n in enumerate(counts):
        one = alone(view, row)
        raters = raters_of(one.tokens[0], one.text[0])
        assert one.memory["raters"][0].nonzero()[:, 0].tolist() == raters
        expected = survivors(one, raters, table and table[0], scale, bias)
        left = n - len(expected)
        pool = math.trunc(0.3 * left) + 1 if recycled and left else 0
        more = pool // 10 + 1 if pool else 0
        got = kept(selection, view, row)
        assert got[: len(expected)] == expected
        assert len(got) == len(expected) + more
        if pool:
            assert selection.assign is not None
            assert int((selection.assign[row] >= 0).sum()) == len(expected) + pool


def test_layers_and_their_numbers_are_scaled() -> None:
    assert SparseVLM().acts_after(32) == (2, 6, 15, 19)
    assert SparseVLM().acts_after(8) == (0, 1, 3, 4)
    assert SparseVLM(keep_tokens=(66, 30, 17)).acts_after(32) == (2, 6, 15)
    few = SparseVLM(keep_tokens=(20, 10, 5), recycle=0)
    kept_at = [len(kept(few.filter(view), view, 0)) for layer in few.acts_after(32)
               for view in [random_view([30], filter=few, layer=layer, depth=32)]]  # fmt: skip
    assert kept_at == [20, 10, 5]


@pytest.mark.parametrize(("option", "entering"), [("192", 206.5), ("128", 145.4), ("64", 82.3)])
def test_the_published_tables_give_the_published_means(option: str, entering: float) -> None:
    """Of 576 tokens, recycled ones included: the name counts what leaves the layers."""
    strategy = build_strategy("prefill", compose([f"prefill=sparsevlm-{option}"])["prefill"])
    expected = expected_workload(named_shape("llava-1.5-7b"), Pipeline(prefill=strategy), image_tokens=576, text_tokens=64,
                                 text_before=35)  # fmt: skip
    assert expected.published_tokens == pytest.approx(int(option), abs=1.5)
    assert expected.equivalent_tokens == pytest.approx(entering, abs=0.05)


def test_without_a_rater_all_text_rates() -> None:
    view = random_view([6], filter=SparseVLM())
    SparseVLM().prepare(replace(view, _text=torch.ones(1, 3, 8), _text_valid=torch.tensor([[True, True, False]])))
    assert view.memory["raters"].tolist() == [[True, True, False]]


def test_protected_tokens_are_not_merged_away() -> None:
    strategy = SparseVLM(layers=(1,), keep_tokens=(2,), recycle=0.9)
    view = random_view([30], filter=strategy, protected=0.3)
    selection = strategy.filter(view)
    assert selection.assign is not None
    for token in view.protected[0].nonzero()[:, 0].tolist():
        slot = int(selection.assign[0, token])
        assert int(selection.keep[0, slot]) == token
        assert int((selection.assign[0] == slot).sum()) == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"keep_tokens": (10, 5)}, "keep_tokens has 2 entries for 4 layers"),
        ({"keep_tokens": (5, 10), "layers": (1, 2)}, "must not rise"),
        ({"keep_tokens": (5, 0), "layers": (1, 2)}, "above 0"),
        ({"keep_ratios": (1.5, 1), "layers": (1, 2)}, "at most 1"),
        ({"keep_tokens": (5,), "keep_ratios": (0.5,), "layers": (1,)}, "keep_tokens or keep_ratios, not both"),
    ],
)
def test_tables_that_cannot_be_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PREFILL["sparsevlm"](**fields)


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), listed_cases("sparsevlm"))
def test_the_published_rule(folder: Path, case: dict) -> None:
    golden, params = group(folder, case["name"]), case["params"]
    start, n = params["image_start"], params["image_len"]
    hidden, attention = golden["hidden"], golden["attn_text_vision"]
    by_rank = {"scale": params["scale"], "bias": params["bias"]} if "scale" in params else {}
    table = None if by_rank else (len(golden["kept"]),)
    strategy = SparseVLM(layers=(2,), keep_tokens=table, **by_rank)
    real = torch.ones(1, attention.shape[2], dtype=torch.bool)
    view = replace(random_view([n], layer=2), tokens=hidden[:, start : start + n], _attention=attention, _rows=real,
                   _text_valid=real)  # fmt: skip
    first = random_view([golden["vision_embeds"].shape[1]], layer=-1)
    strategy.prepare(replace(first, tokens=golden["vision_embeds"], memory=view.memory, _text=golden["text_embeds"],
                             _text_valid=real))  # fmt: skip
    assert view.memory["raters"][0].nonzero()[:, 0].tolist() == golden["raters"].tolist()
    selection = strategy.filter(view)
    number = len(golden["kept"])
    assert selection.keep[0, :number].tolist() == golden["kept"].tolist()
    if number == n:
        return
    assert selection.assign is not None
    pool = (selection.assign[0] >= number).nonzero()[:, 0].tolist()
    assert pool == sorted(golden["recycled_pool"].tolist())
    noise = 1e-6 * golden["noise"][:, : len(pool)]
    with_noise = recycle(
        view.tokens, view.valid, Selection(keep=golden["kept"][None]), golden["relevance"], 0.3, noise=noise
    )
    states, _ = apply_selection(view.tokens, view.sizes, with_noise)
    torch.testing.assert_close(states[:, number:], golden["merged"], atol=1e-4, rtol=0)
    sequence = torch.cat([hidden[:, :start], states, hidden[:, start + n :]], dim=1)
    torch.testing.assert_close(sequence, golden["hidden_out"], atol=1e-4, rtol=0)
