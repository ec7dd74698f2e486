"""Attention and the sums that a policy wants of it: made together where the call is a plain one, apart where it is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_decoders import language_model
from tests.tiny_models import batch, cached, generate, llama, llava, pixels, prompt
from tokcomp import Pipeline
from tokcomp.runner import attending, observing
from tokcomp.runner.arguments import cache_in

H2O = {"name": "h2o", "heavy_tokens": 8, "recent_tokens": 6}
RAGGED = {"name": "mustdrop", "layers": (1, 2), "global_threshold": 0.03, "individual_threshold": 0.1}
PIPELINES = {
    "h2o": Pipeline(cache=H2O),
    "h2o, hiding": Pipeline(cache={**H2O, "eviction": "mask"}),
    "lookm": Pipeline(cache={"name": "lookm", "keep_tokens": 14}),
    "all stages": Pipeline("tome", {"name": "fastv", "layer": 2, "keep_tokens": 9}, H2O),
    "a ragged filter": Pipeline(prefill=RAGGED, cache=H2O),
}


@dataclass
class Calls:
    """Layers whose attention was made with its sums, calls of SDPA, and column sums that were made by themselves."""

    together: int = 0
    sdpa: int = 0
    sums: list[Tensor] = field(default_factory=list)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, *, together: bool = True) -> Iterator[Calls]:
    calls = Calls()
    both, alone, sdpa = (
        attending.attention_and_sums,
        observing.column_sums,
        torch.nn.functional.scaled_dot_product_attention,
    )

    def attended(*args: Any, **how: Any) -> tuple[Tensor, Tensor]:
        calls.together += 1
        return both(*args, **how)

    def summed(*args: Any, **how: Any) -> Tensor:
        calls.sums.append(alone(*args, **how))
        return calls.sums[-1]

    def plain(query: Tensor, *args: Any, **how: Any) -> Tensor:
        mask = how.get("attn_mask")  # the tower's is None or the same for all rows
        causal = how.get("is_causal") or (mask is not None and mask.shape[2] > 1)
        calls.sdpa += bool(causal) and query.shape[2] > 8  # a step has the rows of a group
        return sdpa(query, *args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(attending, "attention_and_sums", attended)
        patch.setattr(observing, "column_sums", summed)
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", plain)
        if not together:
            patch.setattr(attending, "_is_plain", lambda *args: False)
        yield calls


def inputs() -> dict[str, Tensor]:
    return {**batch(prompt(36, 4, 6), prompt(36, 8, 3, seed=1)), "pixel_values": pixels(2)}


@torch.no_grad()
@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("padded", [False, True])
def test_together_is_what_apart_is(monkeypatch: pytest.MonkeyPatch, name: str, padded: bool) -> None:
    """Logits, answers and what stays in the caches, of a batch with and without padding."""
    model = llava(sharp=2.0)
    given = inputs() if padded else {"input_ids": prompt(36, 4, 6), "pixel_values": pixels()}
    found = []
    for together in (True, False):
        with counted(monkeypatch, together=together) as calls, PIPELINES[name].attach(model):
            read = model(**given, use_cache=True)
            answers = generate(model, 5, **given)
        assert (calls.together, calls.sdpa, len(calls.sums)) == ((16, 0, 0) if together else (0, 16, 16))
        found.append((read, answers))
    (first, one), (second, other) = found
    real = torch.ones_like(given["input_ids"]) if "attention_mask" not in given else given["attention_mask"]
    torch.testing.assert_close(first.logits[real.bool()], second.logits[real.bool()], atol=1e-4, rtol=0)
    assert torch.equal(one.sequences, other.sequences)
    for mine, theirs in zip(cache_in(first).layers, cache_in(second).layers, strict=True):
        assert torch.equal(mine.full_index(), theirs.full_index())
        torch.testing.assert_close(mine.keys, theirs.keys, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_later_turn_is_read_in_one_pass_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows see what each head's cache holds, and themselves."""
    model = llava(sharp=2.0)
    turns = [{"input_ids": prompt(36, 4, 6, seed=seed), "pixel_values": pixels(1, seed=seed)} for seed in (0, 1)]
    found = []
    for together in (True, False):
        with counted(monkeypatch, together=together) as calls, PIPELINES["h2o"].attach(model) as trace:
            out = model(**turns[0], use_cache=True)
            out = model(**turns[1], use_cache=True, **cached(model, cache_in(out)))
        assert calls.together == (16 if together else 0)
        assert trace.last.summed == (tuple(range(8)) if together else ())
        found.append(out)
    torch.testing.assert_close(found[0].logits, found[1].logits, atol=1e-4, rtol=0)
    for mine, theirs in zip(*(cache_in(each).layers for each in found), strict=True):
        assert torch.equal(mine.full_index(), theirs.full_index())


@torch.no_grad()
@pytest.mark.parametrize("cache", ["snapkv", "tova", "streaming_llm", "knorm"])
def test_policies_that_want_fewer_rows_leave_the_attention_alone(monkeypatch: pytest.MonkeyPatch, cache: str) -> None:
    model = llava()
    with counted(monkeypatch) as calls, Pipeline(cache=cache).attach(model) as trace:
        model(**inputs(), use_cache=True)
    assert (calls.together, calls.sdpa) == (0, 8)
    assert trace.last.summed == ()


def test_gradients_take_the_model_s_own_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llava()
    with counted(monkeypatch) as calls, PIPELINES["h2o"].attach(model):
        out = model(**inputs(), use_cache=True)
    assert (calls.together, calls.sdpa, len(calls.sums)) == (0, 8, 8)
    out.logits.sum().backward()
    assert model.model.language_model.layers[0].self_attn.q_proj.weight.grad is not None


@torch.no_grad()
def test_eager_attention_keeps_its_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llava(attention="eager")
    dense = model(**inputs(), output_attentions=True).attentions
    with counted(monkeypatch) as calls, PIPELINES["h2o"].attach(model):
        out = model(**inputs(), use_cache=True, output_attentions=True)
    assert (calls.together, len(calls.sums)) == (0, 8)
    for mine, own in zip(out.attentions, dense, strict=True):
        assert torch.equal(mine, own)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "together"), [(torch.bfloat16, 8), (torch.float64, 0)])
def test_narrow_dtypes_are_taken_and_wide_ones_left(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, together: int
) -> None:
    model, given = llava().to(dtype), {**inputs(), "pixel_values": pixels(2).to(dtype)}
    with counted(monkeypatch) as calls, PIPELINES["h2o"].attach(model):
        out = model(**given, use_cache=True)
    assert (calls.together, out.logits.dtype) == (together, dtype)


@torch.no_grad()
def test_autocast_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llava()
    with counted(monkeypatch) as calls, PIPELINES["h2o"].attach(model), torch.autocast("cpu", torch.bfloat16):
        model(**inputs(), use_cache=True)
    assert (calls.together, len(calls.sums)) == (0, 8)


@torch.no_grad()
def test_layers_that_see_a_window_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = language_model("gemma3, two rotary tables")
    ids = prompt(0, 20, 8)
    with counted(monkeypatch) as calls, Pipeline(cache=H2O).attach(model) as trace:
        model(input_ids=ids, use_cache=True)
    windows = model.config.layer_types.count("sliding_attention")
    assert 0 < windows < len(model.config.layer_types)
    assert calls.together == len(model.config.layer_types) - windows
    assert trace.last.summed == tuple(n for n, kind in enumerate(model.config.layer_types) if kind == "full_attention")


@torch.no_grad()
@pytest.mark.parametrize("change", ["mask", "bias", "dropout", "position_bias", "is_causal"])
def test_calls_that_are_more_than_causal_are_left_alone(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """The model's attention gets something that the runner knows nothing of."""
    model = llama()
    ids = prompt(0, 9, 6)
    length, attention = ids.shape[1], model.model.layers[1].self_attn
    causal = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    more: dict[str, Any] = {
        "mask": {"attention_mask": causal.masked_fill(torch.arange(length) == 3, False)},
        "bias": {"attention_mask": torch.zeros(1, 1, length, length).masked_fill(~causal, -torch.inf) + 0.1},
        "dropout": {"dropout": 0.1},
        "position_bias": {"position_bias": torch.zeros(1, 4, length, length)},
        "is_causal": {"is_causal": False},
    }[change]

    def changed(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, **more}

    if change == "dropout":
        attention.train()
        attention.attention_dropout = 0.1
    else:
        attention.register_forward_pre_hook(changed, with_kwargs=True)
    with counted(monkeypatch) as calls, Pipeline(cache=H2O).attach(model) as trace:
        model(input_ids=ids, use_cache=True)
    assert trace.last.summed == (0, 2, 3)
    assert (calls.together, len(calls.sums)) == (3, 1)


@torch.no_grad()
@pytest.mark.parametrize("additive", [False, True])
def test_a_mask_that_says_what_the_pass_says_is_understood(monkeypatch: pytest.MonkeyPatch, additive: bool) -> None:
    model = llama()
    ids = prompt(0, 9, 6)
    mask: Tensor = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "attention_mask": mask}), with_kwargs=True
        )
    with counted(monkeypatch) as calls, Pipeline(cache=H2O).attach(model):
        model(input_ids=ids, use_cache=True)
    assert (calls.together, calls.sdpa) == (4, 0)
