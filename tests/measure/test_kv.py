from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from tests.measure.tiny_models import TEXT, eager
from tokcomp.errors import UnsupportedError
from tokcomp.measure.kv import kv_bytes, measured_kv_bytes
from tokcomp.runner.arguments import cache_in


def test_llava_1_5_7b_in_half_precision() -> None:
    """640 tokens, 32 layers: 0.5 MiB per token."""
    size = kv_bytes([640] * 32, kv_heads=32, head_dim=128, dtype=torch.float16)
    assert size.total == 640 * 524_288
    assert size.by_layer == (640 * 16_384,) * 32


def test_heads_may_hold_different_numbers() -> None:
    size = kv_bytes([(3, 5), 4], kv_heads=2, head_dim=16, dtype=torch.float32)
    assert size.by_layer == (2 * 8 * 16 * 4, 2 * 8 * 16 * 4)


def test_another_number_of_heads_is_refused() -> None:
    with pytest.raises(ValueError, match="layer 1 names the lengths of 3 heads, the model has 2"):
        kv_bytes([4, (1, 2, 3)], kv_heads=2, head_dim=16)


def test_computed_equals_measured_on_a_real_cache() -> None:
    model = eager(LlamaForCausalLM, LlamaConfig(**TEXT))
    with torch.no_grad():
        cache = cache_in(model(input_ids=torch.arange(1, 21)[None], use_cache=True))
    assert measured_kv_bytes(cache) == kv_bytes([20] * 3, kv_heads=2, head_dim=8, dtype=torch.float32)


def test_a_view_of_a_long_tensor_holds_the_long_one() -> None:
    cache = DynamicCache()
    cache.update(torch.zeros(1, 2, 100, 8), torch.zeros(1, 2, 100, 8), 0)
    cache.layers[0].keys = cache.layers[0].keys[:, :, :10]
    assert measured_kv_bytes(cache).total == 2 * 2 * 100 * 8 * 4
    cache.layers[0].keys = cache.layers[0].keys.clone()
    assert measured_kv_bytes(cache).total == (10 + 100) * 2 * 8 * 4


def test_a_storage_in_two_layers_counts_once() -> None:
    cache = DynamicCache()
    shared = torch.zeros(1, 2, 10, 8)
    for layer in range(2):
        cache.update(shared, shared.clone(), layer)
    cache.layers[1].keys = cache.layers[0].keys
    size = measured_kv_bytes(cache)
    assert size.by_layer == (2 * 640, 640)


def test_an_empty_cache_holds_nothing() -> None:
    assert measured_kv_bytes(DynamicCache()).total == 0


def test_what_is_no_cache_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="a tuple has no layers"):
        measured_kv_bytes(())
