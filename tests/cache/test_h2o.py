"""H2O, against a loop over the published rule and against golden vectors."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.cache.views import Layer, alone, kept, random_view
from tests.golden_cases import folders, group, meta
from tokcomp import CACHE, CacheView
from tokcomp.cache.h2o import H2O
from tokcomp.ops.scores import column_sums


def head_rule(policy: H2O, view: CacheView, row: int, head: int, sums: list[float]) -> list[int]:
    """The rule for one head of one sample without padding, as positions in the uncompressed sequence."""
    prompt, index = int(view.prompt[row]), view.index[row, head].tolist()
    heavy = policy.heavy_tokens if policy.heavy_tokens is not None else int(policy.heavy_ratio * prompt)
    recent = max(1, policy.recent_tokens if policy.recent_tokens is not None else int(policy.recent_ratio * prompt))
    n = len(index)
    must = {
        i
        for i in range(n)
        if (policy.respects_protected and view.protected[row, head, i])
        or (policy.keep_text and not view.vision[row, head, i])
    }
    if policy.eviction == "drop":
        if n <= heavy + recent:
            return index
        window = set(range(n - recent, n))
    else:
        if n < max(2, heavy + recent):
            return index
        window = set(range(n - recent + 1, n))
    candidates = [i for i in range(n - recent) if i not in must]
    dark = [i for i in must if i not in window]
    room = max(heavy - len(dark), 0) if heavy + len(window) + len(dark) else 1
    best = sorted(candidates, key=lambda i: (-sums[i], i))[:room]
    return [index[i] for i in sorted(set(best) | must | window)]


@settings(max_examples=120, deadline=None)
@given(
    counts=st.lists(st.integers(1, 24), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
    budget=st.sampled_from(
        [
            {},
            {"heavy_ratio": 0.35, "recent_ratio": 0.0},
            {"heavy_ratio": 0.0, "recent_ratio": 0.2},
            {"heavy_tokens": 4, "recent_tokens": 3},
            {"heavy_tokens": 0, "recent_tokens": 1},
            {"heavy_tokens": 9, "recent_tokens": 6},
        ]
    ),
    eviction=st.sampled_from(["drop", "mask"]),
    respects=st.booleans(),
    keep_text=st.booleans(),
)
def test_keeps_heavy_and_recent_entries(
    counts: list[int], seed: int, budget: dict[str, Any], eviction: str, respects: bool, keep_text: bool
) -> None:
    policy = H2O(**budget, eviction=eviction, respects_protected=respects, keep_text=keep_text)
    view = random_view(counts, policy=policy, seed=seed, protected=0.15)
    steps = [policy.after_prefill(view), policy.after_step(view)]
    for times, selection in enumerate(steps, 1):
        if selection is not None:
            selection.check(view.n_entries, batch_size=len(counts), valid=view.valid)
        for row in range(len(counts)):
            one = alone(view, row)
            sums = (times * one.received[0]).tolist()
            assert kept(selection, view, row) == [head_rule(policy, one, 0, head, sums[head]) for head in range(2)]


def test_equal_sums_go_to_the_earlier_entry() -> None:
    policy = H2O(heavy_tokens=2, recent_tokens=1)
    view = replace(random_view([6], policy=policy, heads=1), _received=torch.ones(1, 1, 6))
    assert policy.after_prefill(view).keep.tolist() == [[[0, 1, 5]]]


def test_short_caches_stay_whole() -> None:
    view = random_view([10, 7], policy=H2O())
    assert H2O(heavy_tokens=5, recent_tokens=5).after_prefill(view) is None
    assert H2O(heavy_tokens=5, recent_tokens=6, eviction="mask").after_prefill(view) is None
    # The simulation counts the coming token: at exactly heavy + recent entries one has to make room.
    shown = H2O(heavy_tokens=5, recent_tokens=5, eviction="mask").after_prefill(view)
    assert (shown.keep >= 0).sum(dim=-1).tolist() == [[9, 9], [7, 7]]


def test_the_simulation_blacks_out_one_entry() -> None:
    policy = H2O(heavy_tokens=2, recent_tokens=3, eviction="mask")
    received = torch.tensor([1.0, 5.0, 2.0, 3.0, 9.0, 8.0, 7.0]).view(1, 1, 7)
    view = replace(random_view([7], policy=policy, heads=1), _received=received)
    # Entry 4 is the oldest of the three recent slots, one of which the coming token takes.
    assert policy.after_prefill(view).keep.tolist() == [[[1, 3, 5, 6]]]
    assert policy.hides()
    assert not H2O().hides()


def test_sums_accumulate_without_touching_what_was_given() -> None:
    policy = H2O(heavy_tokens=3, recent_tokens=2)
    view = random_view([8], policy=policy)
    received = view.received.clone()
    policy.after_prefill(view)
    first = view.memory["sums"]
    policy.after_step(view)
    assert torch.equal(first, received)
    assert torch.equal(view.memory["sums"], received + received)
    assert torch.equal(view.received, received)


def test_fields() -> None:
    policy = CACHE["h2o"]()
    assert policy.spec() == {
        "name": "h2o",
        "heavy_ratio": 0.1,
        "recent_ratio": 0.1,
        "heavy_tokens": None,
        "recent_tokens": None,
        "eviction": "drop",
        "positions": "keep",
        "respects_protected": True,
        "keep_text": False,
    }
    assert policy.acts_in_decoding
    assert policy.prefill_rows(torch.tensor([9]), torch.tensor([4])) is None
    assert H2O(heavy_ratio=0.3).recent_ratio == 0.1
    tokens = H2O(heavy_tokens=4, recent_tokens=8)
    assert (tokens.heavy_ratio, tokens.recent_ratio) == (None, None)
    assert H2O.model_validate({key: value for key, value in tokens.spec().items() if key != "name"}) == tokens
    with pytest.raises(ValidationError, match="heavy_ratio or recent_tokens, not both"):
        H2O(heavy_ratio=0.1, recent_tokens=4)
    with pytest.raises(ValidationError, match="heavy_tokens was given alone"):
        H2O(heavy_tokens=4)
    with pytest.raises(ValidationError, match="leaves every key in its slot"):
        H2O(eviction="mask", positions="rerotate")
    with pytest.raises(ValidationError, match="positions"):
        H2O(positions="renumber")


UNITS = [
    pytest.param(folder, case, id=f"{folder.name}-{case}")
    for folder in folders("h2o_units")
    for case in meta(folder)["cases"]
]


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), UNITS)
def test_units_of_the_published_cache(folder: Path, case: str) -> None:
    golden, params = group(folder, case), meta(folder)["cases"][case]
    heads, length = golden["prefill_attn"].shape[1:3]
    layer = Layer(H2O(heavy_tokens=params["hh_size"], recent_tokens=params["recent_size"]), 1, heads, 1)
    nothing = torch.zeros(1, heads, 1, 1)
    layer.append(nothing.expand(-1, -1, length, -1), nothing.expand(-1, -1, length, -1))
    layer.act(golden["prefill_attn"].sum(dim=2), first=True)
    sizes = [layer.index.shape[2]]
    assert layer.index[0].tolist() == golden["kept_after_prefill"].tolist()
    torch.testing.assert_close(layer.memory["sums"][0], golden["hh_score_after_prefill"], atol=1e-5, rtol=1e-5)
    for step in range(params["steps"]):
        layer.append(nothing, nothing)
        layer.act(golden[f"step{step}.attn"].sum(dim=2), first=False)
        sizes.append(layer.index.shape[2])
        assert layer.index[0].tolist() == golden[f"step{step}.kept"].tolist()
        torch.testing.assert_close(layer.memory["sums"][0], golden[f"step{step}.hh_score"], atol=1e-5, rtol=1e-5)
    assert sizes == params["cache_sizes"]


def policy_cases(*prefixes: str) -> list[Any]:
    return [
        pytest.param(folder, case, id=case)
        for folder in folders("h2o_policy")
        for case in meta(folder)["cases"]
        if case.startswith(prefixes)
    ]


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), policy_cases("direct_decode", "official_decode"))
def test_decoding_with_a_real_cache(folder: Path, case: str) -> None:
    golden, params = group(folder, case), meta(folder)["cases"][case]["params"]
    query, key, value, prompt = golden["q"], golden["k"], golden["v"], params["prompt_len"]
    policy = H2O(heavy_tokens=params["hh_size"], recent_tokens=params["recent_size"])
    layer = Layer(policy, key.shape[0], key.shape[1], key.shape[3])
    layer.attend(query[:, :, :prompt], key[:, :, :prompt], value[:, :, :prompt])
    kept_after, sums_after = golden["kept_after"], golden["hh_score_after"]
    for step in range(params["steps"] + 1):
        if step > 0:
            column = slice(prompt + step - 1, prompt + step)
            output = layer.attend(query[:, :, column], key[:, :, column], value[:, :, column])
            torch.testing.assert_close(output, golden["attn_out"][step - 1].view_as(output), atol=1e-5, rtol=1e-5)
        assert layer.index.tolist() == kept_after[step].view_as(layer.index).tolist()
        torch.testing.assert_close(
            layer.memory["sums"], sums_after[step].view_as(layer.index), atol=1e-5, rtol=1e-5, check_dtype=False
        )


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), policy_cases("effivlm"))
def test_a_single_selection_after_the_prefill(folder: Path, case: str) -> None:
    """EffiVLM-Bench's H2O: our first selection; with ``head_adaptive`` off, of sums over all heads."""
    golden, params = group(folder, case), meta(folder)["cases"][case]["params"]
    key, wanted = golden["k"], golden["kept_idx"]
    sums = column_sums(golden["q"], key, scale=1 / math.sqrt(key.shape[-1]), causal=True)
    if not params["head_adaptive"]:
        sums = sums.sum(dim=1, keepdim=True).expand(sums.shape)
    before = golden["scores"].shape[-1]
    torch.testing.assert_close(sums[..., :before], golden["scores"], atol=1e-4, rtol=1e-4)
    window = key.shape[2] - before
    policy = H2O(heavy_tokens=wanted.shape[-1] - window, recent_tokens=window)
    layer = Layer(policy, key.shape[0], key.shape[1], key.shape[3])
    layer.append(key, golden["v"])
    layer.act(sums, first=True)
    assert layer.index.tolist() == wanted.tolist()


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), policy_cases("kvpress_observed"))
def test_column_sums_give_the_observed_attention(folder: Path, case: str) -> None:
    """kvpress divides the column sums by the number of rows that see the entry; no policy of ours does."""
    golden = group(folder, case)
    query, key = golden["q"], golden["k"]
    sums = column_sums(query, key, scale=1 / math.sqrt(key.shape[-1]), causal=True)
    observers = torch.arange(key.shape[2], 0, -1) * (query.shape[1] // key.shape[1])
    torch.testing.assert_close(sums / observers, golden["scores"], atol=1e-6, rtol=1e-4)
