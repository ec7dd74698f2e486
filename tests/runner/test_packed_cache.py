"""Budgets per head, stored packed: the same answers as from padded entries under a mask, in the memory that was promised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.tiny_models import batch, cached, generate, llama, llava, pixels, prompt
from tokcomp import Pipeline
from tokcomp.cache.adakv import AdaKV
from tokcomp.errors import UnsupportedError
from tokcomp.measure.kv import kv_bytes, measured_kv_bytes
from tokcomp.runner.arguments import cache_in

POLICY = {"name": "adakv", "base": {"name": "snapkv", "keep_tokens": 20, "window": 4}, "alpha": 0.1}


def inputs() -> dict[str, Any]:
    return {"input_ids": prompt(36, 4, 6), "pixel_values": pixels()}


def two() -> dict[str, Any]:
    return {**batch(prompt(36, 4, 6), prompt(36, 8, 3, seed=1)), "pixel_values": pixels(2)}


def longest_head(cache: Any) -> int:
    """Entries of the head with most; a layer whose heads happen to hold equal numbers is not packed."""
    return max(layer.keys.shape[2] if layer.packed is None else int(layer.packed.present.sum(dim=-1).max())
               for layer in cache.layers)  # fmt: skip


@contextmanager
def padded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The runner's other way to hold such a cache: every head padded to the longest one, under a mask."""
    with monkeypatch.context() as patch:
        patch.setattr(AdaKV, "packs", lambda self: False)
        yield


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_packed_entries_answer_as_padded_ones(attention: str, kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llava(attention=attention, kv_heads=kv_heads, sharp=2.0)
    pipeline = Pipeline(prefill={"name": "fastv", "layer": 3, "keep_tokens": 25}, cache=POLICY)
    with pipeline.attach(model):
        packed = generate(model, 5, **two())
    with padded(monkeypatch), pipeline.attach(model):
        masked = generate(model, 5, **two())
    assert torch.equal(packed.sequences, masked.sequences)
    for one, other in zip(packed.logits, masked.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    assert (longest_head(cache_in(packed)) > 20) == (kv_heads > 1)


@pytest.mark.parametrize("positions", ["renumber", "rerotate"])
def test_positions_may_follow_the_entries(positions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llava(sharp=2.0)
    pipeline = Pipeline(cache={**POLICY, "positions": positions})
    with pipeline.attach(model):
        packed = generate(model, 4, **two())
    with padded(monkeypatch), pipeline.attach(model):
        masked = generate(model, 4, **two())
    for one, other in zip(packed.logits, masked.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llava(sharp=1.0).to(dtype)
    rows = {**two(), "pixel_values": pixels(2).to(dtype)}
    pipeline = Pipeline(cache=POLICY)
    with pipeline.attach(model):
        packed = generate(model, 3, **rows)
    with padded(monkeypatch), pipeline.attach(model):
        masked = generate(model, 3, **rows)
    assert cache_in(packed).layers[0].packed.keys.dtype == dtype
    for one, other in zip(packed.logits, masked.logits, strict=True):
        torch.testing.assert_close(one, other, atol=0.05, rtol=0.02)


def test_the_memory_is_the_sum_of_the_budgets() -> None:
    model = llava(sharp=2.0)
    for rows, samples in ((inputs(), 1), (two(), 2)):
        with Pipeline(cache=POLICY).attach(model) as trace, torch.no_grad():
            cache = cache_in(model(**rows, use_cache=True))
        promised = kv_bytes([20] * 8, kv_heads=2, head_dim=8, dtype=torch.float32)
        assert measured_kv_bytes(cache).by_layer == tuple(samples * size for size in promised.by_layer)
        assert trace.last.cache_lengths == ((20,) * samples,) * 8
        assert longest_head(cache) > 20


def test_a_pyramid_is_as_large_as_its_mean_says() -> None:
    model = llava(sharp=2.0)
    pyramid = {"name": "pyramidkv", "keep_tokens": 20, "window": 4, "beta": 4}
    for policy in (pyramid, {"name": "adakv", "base": pyramid}):
        with Pipeline(cache=policy).attach(model) as trace, torch.no_grad():
            cache = cache_in(model(**inputs(), use_cache=True))
        promised = kv_bytes([20] * 8, kv_heads=2, head_dim=8, dtype=torch.float32)
        assert measured_kv_bytes(cache).total == promised.total
        assert trace.last.cache_lengths[0] == 35
        assert trace.last.cache_lengths[-1] == 5


def test_every_step_adds_one_entry_per_head() -> None:
    model = llava(sharp=2.0)
    with Pipeline(cache=POLICY).attach(model) as trace:
        cache = cache_in(generate(model, 4, **two()))
    assert trace.last.cache_lengths == ((23, 23),) * 8
    assert measured_kv_bytes(cache).total == 2 * kv_bytes([23] * 8, kv_heads=2, head_dim=8, dtype=torch.float32).total


def test_beams_follow_their_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llava(sharp=2.0)
    with Pipeline(cache=POLICY).attach(model):
        both = generate(model, 5, **two(), num_beams=3)
        first = generate(model, 5, input_ids=prompt(36, 4, 6), pixel_values=pixels(2)[:1], num_beams=3)
    with padded(monkeypatch), Pipeline(cache=POLICY).attach(model):
        masked = generate(model, 5, **two(), num_beams=3)
    assert torch.equal(both.sequences, masked.sequences)
    assert torch.equal(both.sequences[0, -5:], first.sequences[0, -5:])


def test_rows_may_change_places() -> None:
    model = llava(sharp=2.0)
    with Pipeline(cache=POLICY).attach(model), torch.no_grad():
        out = model(**two(), use_cache=True)
        cache = cache_in(out)
        nxt = out.logits[:, -1:].argmax(dim=-1)
        cache.reorder_cache(torch.tensor([1, 0]))
        swapped = model(input_ids=nxt.flip(0), **cached(model, cache), use_cache=True).logits
        out = model(**two(), use_cache=True)
        straight = model(input_ids=nxt, **cached(model, cache_in(out)), use_cache=True).logits
    torch.testing.assert_close(swapped.flip(0), straight, atol=1e-5, rtol=0)


def test_a_text_turn_goes_on() -> None:
    """Reading a later turn of several rows equals reading it token by token."""
    model = llava(sharp=2.0)
    later = prompt(0, 3, 2, seed=5)
    with Pipeline(cache=POLICY).attach(model), torch.no_grad():
        cache = cache_in(model(**inputs(), use_cache=True))
        at_once = model(input_ids=later, **cached(model, cache), use_cache=True).logits
        cache = cache_in(model(**inputs(), use_cache=True))
        steps = [model(input_ids=later[:, i : i + 1], **cached(model, cache), use_cache=True).logits for i in range(5)]
    torch.testing.assert_close(at_once, torch.cat(steps, dim=1), atol=1e-4, rtol=0)


def test_works_on_a_plain_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    rows = batch(prompt(0, 20, 20), prompt(0, 11, 15, seed=2))
    with Pipeline(cache=POLICY).attach(model):
        packed = generate(model, 4, **rows)
    with padded(monkeypatch), Pipeline(cache=POLICY).attach(model):
        masked = generate(model, 4, **rows)
    assert torch.equal(packed.sequences, masked.sequences)


def test_a_packed_cache_is_refused_outside_its_block() -> None:
    model = llava(sharp=2.0)
    with Pipeline(cache=POLICY).attach(model), torch.no_grad():
        cache = cache_in(model(**inputs(), use_cache=True))
    with pytest.raises(UnsupportedError, match="no pipeline is attached to the model"), torch.no_grad():
        model(input_ids=prompt(0, 1, 0), **cached(model, cache), use_cache=True)
    with (
        Pipeline(cache="h2o").attach(model),
        pytest.raises(UnsupportedError, match="packed by a policy"),
        torch.no_grad(),
    ):
        model(input_ids=prompt(0, 1, 0), **cached(model, cache), use_cache=True)
