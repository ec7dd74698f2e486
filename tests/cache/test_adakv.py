"""AdaKV, against a loop over the rule and against golden vectors."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.cache.views import alone, kept, prompt_view, random_view
from tests.golden_cases import cases, group, meta
from tokcomp.cache.adakv import AdaKV
from tokcomp.ops.allocation import head_capacities
from tokcomp.ops.packed import Packed, packed_attention

MASKS = cases("adakv", having="kept_mask")
ALLOCATIONS = cases("adakv", having="head_capacity")


def policy_of(params: dict[str, Any], n: int) -> AdaKV:
    """A golden case's policy; n entries per head."""
    base: dict[str, Any] = {"name": params["base"], "keep_tokens": n}
    if params["base"] == "knorm":
        base |= {"sinks": 0, "recent_tokens": 0}
    if "window_size" in params:
        base |= {"window": params["window_size"], "kernel": params["kernel_size"]}
    return AdaKV(base=base, alpha=params["alpha_safeguard"])


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), MASKS, ids=lambda value: getattr(value, "name", value))
def test_golden(folder: Path, case: str) -> None:
    golden, params = group(folder, case), meta(folder)["cases"][case]["params"]
    keys, values, mask = golden["k"], golden["v"], golden["kept_mask"]
    policy = policy_of(params, params["total_kept_per_sample"] // keys.shape[1])
    view = prompt_view(policy, keys, values, golden["q"])
    window = params.get("window_size", 0)
    scale = window * golden["q"].shape[1] // keys.shape[1] if window else 1
    scores = (policy.scorer.score(view) / scale)[..., : keys.shape[2] - window]
    torch.testing.assert_close(scores, golden["scores"][..., : keys.shape[2] - window], atol=1e-4, rtol=0)

    keep = policy.after_prefill(view).keep
    present, index = keep >= 0, keep.clamp(min=0)
    for row, head in product(range(keys.shape[0]), range(keys.shape[1])):
        assert keep[row, head][present[row, head]].tolist() == mask[row, head].nonzero()[:, 0].tolist()
    assert torch.equal(present.sum(dim=-1), golden["head_lens"])
    wide = index[..., None].expand(*index.shape, keys.shape[3])
    packed = Packed.pack(keys.gather(2, wide), values.gather(2, wide), present)
    for back, ragged in zip(packed.unpack(), (golden["k_ragged"], golden["v_ragged"]), strict=True):
        assert torch.equal(back[present], ragged)  # sample by sample, head by head, in ascending position
    none = keys[:, :, :0]
    output = packed_attention(golden["q_next"], packed, none, none, scale=keys.shape[3] ** -0.5)
    torch.testing.assert_close(output, golden["attn_out_next"], atol=1e-4, rtol=0)


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), ALLOCATIONS, ids=lambda value: getattr(value, "name", value))
def test_golden_allocation(folder: Path, case: str) -> None:
    golden, params = group(folder, case), meta(folder)["cases"][case]["params"]
    scores = golden["scores"][None]
    capacity = torch.full(scores.shape[:2], params["base_capacity"])
    count, own = head_capacities(scores, capacity, torch.ones_like(scores, dtype=torch.bool),
                                 floor_share=params["floor_alpha"])  # fmt: skip
    assert count[0].tolist() == golden["global_count"].tolist()
    assert own[0].tolist() == golden["head_capacity"].tolist()


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 24), min_size=1, max_size=3), seed=st.integers(0, 2**31), n=st.integers(1, 20),
       alpha=st.sampled_from([0.0, 0.2, 0.5, 1.0]), window=st.integers(1, 4))  # fmt: skip
def test_the_layers_best_entries_stay(counts: list[int], seed: int, n: int, alpha: float, window: int) -> None:
    base = {"name": "snapkv", "keep_tokens": n, "window": window, "kernel": 1}
    policy = AdaKV(base=base, alpha=alpha, respects_protected=False)
    view = random_view(counts, policy=policy, seed=seed)
    selection = policy.after_prefill(view)
    for row, count in enumerate(counts):
        one = alone(view, row)
        room, rows = min(n, count), max(min(window, count, int(one.after)), 1)
        score = one.received[0].masked_fill(torch.arange(count) >= count - rows, 0.0)
        recent = min(rows, room - 1)
        ranked = {(head, i): -torch.inf if i >= count - recent else -float(score[head, i])
                  for head in range(2) for i in range(count)}  # fmt: skip
        order = sorted(ranked, key=lambda at: (ranked[at], at))
        safe = {at for head in range(2) for at in [a for a in order if a[0] == head][: max(1, int(alpha * room))]}
        sure = safe | {at for at in ranked if ranked[at] == -torch.inf}
        chosen = sorted(sure | set([at for at in order if at not in sure][: max(2 * room - len(sure), 0)]))
        assert kept(selection, view, row) == [
            [int(one.index[0, 0, i]) for h, i in chosen if h == head] for head in range(2)
        ]
        assert len(chosen) == 2 * room


def test_alpha_one_is_the_base_itself() -> None:
    base = {"name": "snapkv", "keep_tokens": 9, "window": 3}
    policy = AdaKV(base=base, alpha=1.0)
    view = random_view([40, 22], policy=policy)
    assert torch.equal(policy.after_prefill(view).keep, policy.base.after_prefill(view).keep)


def test_published_rounding_keeps_each_heads_best() -> None:
    policy = AdaKV(base={"name": "snapkv", "keep_tokens": 12, "window": 2, "kernel": 1}, allocation="published")
    view = random_view([40], policy=policy)
    keep = policy.after_prefill(view).keep
    counts = (keep[0] >= 0).sum(dim=-1)
    score = policy.scorer.score(view)[:, :, :38]
    best = score.flatten().topk(20).indices // 38
    expected = [round(int((best == head).sum()) * 0.8 + 2) + 2 for head in range(2)]
    assert counts.tolist() == expected


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"base": "tova"}, "'tova' gives no scores per head"),
        ({"base": {"name": "snapkv", "heads": "shared"}}, "leave its heads and block unset"),
        ({"base": {"name": "keydiff", "block": 4}}, "leave its heads and block unset"),
        ({"base": {"name": "snapkv", "positions": "renumber"}}, "positions belong to the wrapper"),
        ({"base": "none"}, "give the name of a cache strategy"),
        ({"alpha": 1.5}, "alpha"),
    ],
)
def test_refuses_what_has_no_comparable_scores(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        AdaKV(**fields)


def test_acts_where_and_on_what_its_base_does() -> None:
    policy = AdaKV(base={"name": "knorm", "first_layer": 2})
    assert policy.acts_on(8) == range(2, 8)
    assert policy.signals() == frozenset()
    assert AdaKV().prefill_rows(torch.tensor([90]), torch.tensor([20])).tolist() == [20]
    assert AdaKV().packs()
