"""StreamingLLM, against its rule and golden vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.cache.views import Layer, alone, kept, random_view
from tests.golden_cases import folders, group, meta
from tokcomp import CACHE
from tokcomp.cache.streaming_llm import StreamingLLM
from tokcomp.ops.rotary import rerotate


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
    sinks=st.integers(0, 5),
    size=st.sampled_from([{}, {"keep_ratio": 0.5}, {"recent_tokens": 1}, {"recent_tokens": 7}]),
    exempt=st.tuples(st.booleans(), st.booleans()),
)
def test_keeps_sinks_and_recent_entries(
    counts: list[int], seed: int, sinks: int, size: dict[str, Any], exempt: tuple[bool, bool]
) -> None:
    policy = StreamingLLM(sinks=sinks, **size, respects_protected=exempt[0], keep_text=exempt[1])
    view = random_view(counts, policy=policy, seed=seed, protected=0.15)
    selection = policy.after_prefill(view)
    if selection is not None:
        selection.check(view.n_entries, batch_size=len(counts), valid=view.valid[:, 0])
    for row, n in enumerate(counts):
        one = alone(view, row)
        recent = size.get("recent_tokens") or max(1, max(1, round(n * size.get("keep_ratio", 0.2))) - sinks)
        must = one.protected[0, 0] & exempt[0] | ~one.vision[0, 0] & exempt[1]
        places = {i for i in range(n) if i < sinks or i >= n - recent or must[i]}
        assert kept(selection, view, row) == [one.index[0, 0, sorted(places)].tolist()] * 2


def test_fields() -> None:
    policy = CACHE["streaming_llm"]()
    assert policy.spec() == {
        "name": "streaming_llm",
        "sinks": 4,
        "keep_ratio": 0.2,
        "recent_tokens": None,
        "positions": "rerotate",
        "respects_protected": True,
        "keep_text": False,
    }
    assert policy.acts_in_decoding
    assert StreamingLLM(recent_tokens=9).keep_ratio is None
    with pytest.raises(ValidationError, match=r"keep_ratio \(0.5\) or recent_tokens \(9\), not both"):
        StreamingLLM(recent_tokens=9, keep_ratio=0.5)
    view = random_view([13, 9], policy=policy)
    assert StreamingLLM(recent_tokens=9).after_step(view) is None


def test_a_share_of_the_prompt_stays_while_the_text_grows() -> None:
    layer = Layer(StreamingLLM(sinks=2, keep_ratio=0.5), 2, 2, 4)
    layer.append(torch.zeros(2, 2, 12, 4), torch.zeros(2, 2, 12, 4))
    layer.act(torch.zeros(2, 2, 12), first=True)
    assert layer.index[1, 1].tolist() == [0, 1, 8, 9, 10, 11]
    for step in range(3):
        layer.append(torch.zeros(2, 2, 1, 4), torch.zeros(2, 2, 1, 4))
        layer.act(torch.zeros(2, 2, 7), first=False)
        assert layer.index[0, 1].tolist() == [0, 1, 9 + step, 10 + step, 11 + step, 12 + step]


def cases(*prefixes: str) -> list[Any]:
    return [
        pytest.param(folder, case, id=case)
        for folder in folders("streaming_llm")
        for case in meta(folder)["cases"]
        if case.startswith(prefixes) and {"kept_idx", "kept_after"} & set(group(folder, case))
    ]


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), cases("kvpress", "effivlm"))
def test_selections_of_the_ports(folder: Path, case: str) -> None:
    """Sinks and recent entries in other proportions: kvpress keeps ``n_sink`` first ones, EffiVLM-Bench 90 % of them."""
    golden, params = group(folder, case), meta(folder)["cases"][case]["params"]
    key, wanted = golden["k"], golden["kept_idx"]
    n = wanted.shape[-1]
    if "n_sink" in params:
        recent = n - params["n_sink"]
    else:
        recent = params.get("window", max(1, int(n * params.get("window_size_budgets", 0.1))))
    layer = Layer(StreamingLLM(sinks=n - recent, recent_tokens=recent), key.shape[0], key.shape[1], key.shape[3])
    layer.append(key, golden["v"])
    layer.act(torch.zeros(key.shape[:3]), first=True)
    assert layer.index.tolist() == wanted.tolist()
    if "inv_freq" in golden and "k_out" in golden:
        turned = rerotate(layer.keys, torch.arange(n) - layer.index, golden["inv_freq"])
        torch.testing.assert_close(turned, golden["k_out"], atol=1e-5, rtol=1e-5)
    elif "kept_idx_ref_order" in golden and "rerotated" not in case:
        order = golden["kept_idx_ref_order"].argsort(dim=-1)[..., None].expand_as(layer.keys)
        assert torch.equal(layer.keys, golden["k_out"].gather(2, order))
        assert torch.equal(layer.values, golden["v_out"].gather(2, order))


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), cases("decode_schedule"))
def test_schedule_of_the_paper(folder: Path, case: str) -> None:
    wanted, params = group(folder, case)["kept_after"], meta(folder)["cases"][case]["params"]
    layer = Layer(StreamingLLM(sinks=params["n_sink"], recent_tokens=params["n_recent"]), 1, 1, 2)
    for step, row in enumerate(wanted):
        t = params["prompt_len"] if step == 0 else 1
        layer.append(torch.zeros(1, 1, t, 2), torch.zeros(1, 1, t, 2))
        layer.act(torch.zeros(layer.index.shape), first=step == 0)
        assert layer.index[0, 0].tolist() == row[row >= 0].tolist()
    assert len(wanted) == params["steps"] + 1
