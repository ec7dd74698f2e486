"""Quantized caches: each layer of its own length, as the vision and the prefill stage leave it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from transformers import DynamicCache, QuantizedCache, cache_utils

from tests.tiny_models import batch, cached, generate, llava, pixels, prompt
from tokcomp import Pipeline
from tokcomp.errors import UnsupportedError
from tokcomp.measure.kv import measured_kv_bytes
from tokcomp.runner.stored import StoredLayer

STAGES = Pipeline({"name": "uniform", "keep_tokens": 12}, {"name": "fastv", "layer": 2, "keep_tokens": 5})

BACKENDS = [
    pytest.param(
        "fp8", marks=pytest.mark.skipif(not hasattr(cache_utils, "Fp8QuantizedLayer"), reason="transformers < 5.24")
    ),
    pytest.param("quanto", marks=pytest.mark.skipif(find_spec("optimum") is None, reason="needs optimum-quanto")),
]


def inputs(rows: int = 1) -> dict[str, Any]:
    return {**batch(*[prompt(36, 4, 6 + row, seed=row) for row in range(rows)]), "pixel_values": pixels(rows)}


def quantized(model: Any, backend: str) -> QuantizedCache:
    config = model.config.get_text_config()
    few = {"nbits": 4, "residual_length": 4, "q_group_size": 8} if backend == "quanto" else {}
    return QuantizedCache(backend, config, **few)


class Plain(cache_utils.DynamicLayer):
    """Stores what it is given as it is: what is left is the bookkeeping around a quantized layer."""

    _quantized_keys = _quantized_values = None


@pytest.mark.parametrize("rows", [1, 2])
def test_around_entries_that_lose_nothing_the_answer_is_that_of_the_default_cache(rows: int) -> None:
    model = llava(sharp=2.0)
    cache = QuantizedCache.__new__(QuantizedCache)
    cache_utils.Cache.__init__(cache, layers=[Plain() for _ in model.model.language_model.layers])
    with STAGES.attach(model) as trace:
        expected = generate(model, 5, **inputs(rows))
        lengths = trace.last.cache_lengths
        out = generate(model, 5, **inputs(rows), **cached(model, cache))
    assert all(isinstance(layer, StoredLayer) for layer in cache.layers)
    assert torch.equal(out.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(out.logits), torch.stack(expected.logits))
    assert trace.last.cache_lengths == lengths


@pytest.mark.parametrize("backend", BACKENDS)
def test_quantized_entries_stay_near_and_take_less_room(backend: str) -> None:
    model = llava(sharp=2.0, width=64)
    cache, plain = quantized(model, backend), DynamicCache(config=model.config.get_text_config())
    with STAGES.attach(model) as trace, torch.no_grad():
        expected = generate(model, 6, **inputs(), **cached(model, plain))
        lengths = trace.last.cache_lengths
        # The same tokens, so that only the cache's rounding differs.
        ids = expected.sequences
        model(**inputs(), use_cache=True, **cached(model, cache))
        logits = [model(input_ids=ids[:, i : i + 1], use_cache=True, **cached(model, cache)).logits[:, -1]
                  for i in range(ids.shape[1] - 6, ids.shape[1] - 1)]  # fmt: skip
    assert trace.last.cache_lengths == lengths
    for mine, its in zip(logits, expected.logits[1:], strict=True):
        near = 0.95 if backend == "fp8" else 0.8  # eight bits, four bits
        assert float(torch.nn.functional.cosine_similarity(mine, its).min()) > near
        assert not torch.equal(mine, its)
    assert measured_kv_bytes(cache).total < measured_kv_bytes(plain).total


@pytest.mark.parametrize("backend", BACKENDS)
def test_beams_reorder_quantized_entries_or_are_refused(backend: str) -> None:
    model = llava(sharp=2.0, width=64)
    with STAGES.attach(model) as trace:
        if hasattr(cache_utils.QuantizedLayer, "reorder_cache") and "reorder_cache" in vars(cache_utils.QuantizedLayer):
            out = generate(model, 5, **inputs(), num_beams=3, **cached(model, quantized(model, backend)))
            assert out.sequences.shape == (1, 51)
            assert trace.last.cache_lengths[0] == (10 + 12 + 4,) * 3
        else:
            with pytest.raises(UnsupportedError, match="does not follow beams"):
                generate(model, 5, **inputs(), num_beams=3, **cached(model, quantized(model, backend)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_name(backend: str) -> None:
    """``generate()`` makes the cache itself."""
    model = llava(sharp=2.0, width=64)
    config = {"backend": backend, **({"residual_length": 4, "q_group_size": 8} if backend == "quanto" else {})}
    with STAGES.attach(model) as trace:
        generate(model, 4, **inputs(), cache_implementation="quantized", cache_config=config)
    assert trace.last.cache_lengths[-1] == 10 + 5 + 3


def test_a_cache_policy_is_refused() -> None:
    model = llava()
    cache = QuantizedCache.__new__(QuantizedCache)
    cache.layers, cache.offloading = [], False
    with (
        Pipeline(cache="h2o").attach(model),
        pytest.raises(UnsupportedError, match="cache policy 'h2o' cannot evict from a quantized cache"),
        torch.no_grad(),
    ):
        model(**inputs(), use_cache=True, **cached(model, cache))
