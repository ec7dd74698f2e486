"""The interval wrapper, against plain loops and against golden vectors of a library's decoding wrapper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.cache.views import Layer, naive_attention
from tests.golden_cases import cases, group, meta
from tokcomp.cache.interval import Interval

TOVA = cases("tova", having="kept_after_step")
INTERVALS = [(folder, case) for folder, case in cases("knorm", "interval") if "interval" in case]
PLAIN = {"name": "knorm", "sinks": 0, "recent_tokens": 0}


def decode(policy: Interval, keys: Tensor, values: Tensor, query: Tensor, prompt: int) -> list[Tensor]:
    """The entries after every step."""
    layer = Layer(policy, keys.shape[0], keys.shape[1], keys.shape[3], group=query.shape[1] // keys.shape[1])
    layer.attend(query[:, :, :prompt], keys[:, :, :prompt], values[:, :, :prompt])
    after = []
    for step in range(prompt, keys.shape[2]):
        now = slice(step, step + 1)
        layer.attend(query[:, :, now], keys[:, :, now], values[:, :, now])
        after.append(layer.index)
    return after


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), TOVA, ids=lambda value: getattr(value, "name", value))
def test_every_step_with_tova_is_tova(folder: Path, case: str) -> None:
    golden, told = group(folder, case), meta(folder)["cases"][case]
    current = "stays" if "kvpress" in told["source"] else "competes"
    base = {"name": "tova", "keep_tokens": told["params"]["target_size"], "current": current}
    after = decode(Interval(base=base, every=1), golden["k"], golden["v"], golden["q"], told["params"]["prompt_len"])
    for index, expected in zip(after, golden["kept_after_step"], strict=True):
        assert torch.equal(index, expected.view(len(expected), -1, expected.shape[-1]).expand_as(index))


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), INTERVALS, ids=lambda value: getattr(value, "name", value))
def test_golden_interval(folder: Path, case: str) -> None:
    golden, params = group(folder, case), meta(folder)["cases"][case]["params"]
    every = next(params[name] for name in ("interval", "compression_interval", "every") if name in params)
    policy = Interval(base={**PLAIN, "keep_tokens": params["target_size"]}, every=every)
    keys = golden["k"]
    after = decode(policy, keys, golden.get("v", keys), golden.get("q", keys), params["prompt_len"])
    lengths = next((golden[name] for name in golden if "len" in name), None)
    if lengths is not None:
        assert [index.shape[2] for index in after] == lengths.flatten().tolist()
    for name, expected in golden.items():
        if "kept" in name and expected.dim() == 4:
            rows = [index for index in after if index.shape[2] == expected.shape[3]]
            assert torch.equal(torch.stack(rows[-len(expected) :]), expected)
        elif "kept" in name and expected.dim() == 3:
            assert torch.equal(after[-1], expected)


def random_case(seed: int = 0, n: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 2, n, 8, generator=generator), 2 * torch.randn(1, 4, n, 8, generator=generator)


def test_the_cache_swings_between_the_target_and_an_interval_more() -> None:
    keys, query = random_case()
    after = decode(Interval(base={**PLAIN, "keep_tokens": 6}, every=4), keys, keys, query, 10)
    assert [index.shape[2] for index in after] == [11, 12, 13, 6, 7, 8, 9, 6, 7, 8, 9, 6, 7, 8]
    norms = keys[0].norm(dim=-1)
    expected = [sorted(sorted(range(14), key=lambda i, head=head: float(norms[head, i]))[:6]) for head in range(2)]
    assert after[3][0].tolist() == expected


@pytest.mark.parametrize("window", [2, 4, 64])
def test_snapkv_looks_at_the_tokens_of_the_interval(window: int) -> None:
    keys, query = random_case(1)
    base = {"name": "snapkv", "keep_tokens": 8, "window": window, "kernel": 1}
    after = decode(Interval(base=base, every=4), keys, keys, query, 10)
    rows = min(window, 4)
    attention = (
        naive_attention(query[:, :, :14], keys[:, :, :14])[0, :, -rows:].sum(dim=1).unflatten(0, (2, 2)).sum(dim=1)
    )
    for head in range(2):
        best = attention[head, : 14 - rows].topk(8 - rows).indices.tolist()
        assert after[3][0, head].tolist() == sorted(best + list(range(14 - rows, 14)))


def test_may_act_after_the_prefill_too() -> None:
    keys, query = random_case()
    after = decode(Interval(base={**PLAIN, "keep_tokens": 6}, every=4, prefill=True), keys, keys, query, 10)
    assert [index.shape[2] for index in after][:5] == [7, 8, 9, 6, 7]


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("h2o", "'h2o' cannot act again and again"),
        ("adakv", "'adakv' cannot act again and again"),
        ("random", "'random' cannot act again and again"),
        ("expected_attention", "looks at the prompt's queries"),
        ("snapkv", "give base.keep_tokens"),
        ("streaming_llm", "positions belong to the wrapper"),
    ],
)
def test_refuses_bases_that_cannot(base: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Interval(base=base)
