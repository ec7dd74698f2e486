"""Attention with its column sums in one pass, against loops in float64, SDPA and the sums made by themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tests.ops.test_scores import Largest, loop_rows, loop_sums, problems
from tokcomp.ops import attended
from tokcomp.ops.attended import attention_and_sums
from tokcomp.ops.scores import column_sums

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@settings(max_examples=80, deadline=None)
@given(problems(), st.sampled_from([None, 1, 2000, 2**30]), st.integers(0, 2**31))
def test_equals_the_loop(problem: dict[str, Any], piece_bytes: int | None, seed: int) -> None:
    query, key, key_valid, padding = (problem[name] for name in ("query", "key", "key_valid", "padding"))
    (b, h, t, _), (g, length) = query.shape, key.shape[1:3]
    value = torch.randn(b, g, length, 5, generator=torch.Generator().manual_seed(seed)).to(query.dtype)
    per_head = padding == "per head"
    row_valid = torch.ones(b, t, dtype=torch.bool) if per_head else key_valid[:, 0, length - t :]
    output, sums = attention_and_sums(
        query, key, value, scale=0.3, key_valid=None if padding == "none" else key_valid if per_head else key_valid[:, 0],
        piece_bytes=piece_bytes,
    )  # fmt: skip
    assert output.dtype == query.dtype
    assert sums.dtype == torch.float32
    visible = key_valid.repeat_interleave(h // g, dim=1)[:, :, None]
    visible = visible & torch.ones(t, length, dtype=torch.bool).tril(length - t)
    rows = loop_rows(query, key, 0.3, visible)
    wanted = rows @ value.double().repeat_interleave(h // g, dim=1)
    tolerance = TOLERANCE[query.dtype]
    torch.testing.assert_close(output.double(), wanted, atol=tolerance, rtol=tolerance)
    assert bool((output[~visible.any(dim=3)] == 0).all())
    expected = loop_sums(query, key, 0.3, True, key_valid, row_valid, None)
    torch.testing.assert_close(sums, expected.float(), atol=2e-5, rtol=1e-5)
    assert bool((sums[~key_valid] == 0).all())


def states(*shape: int, kv_heads: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Queries as a layer makes them, ``[b, t, h, d]`` transposed, and keys and values as a cache holds them."""
    b, h, length, d = shape
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(b, length, h, d, generator=generator).transpose(1, 2)
    key, value = (torch.randn(b, kv_heads, length, d, generator=generator) for _ in range(2))
    return query.to(dtype), key.to(dtype), value.to(dtype)


@pytest.mark.parametrize("piece_bytes", [None, 1, 200_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 8, 333, 16), (3, 6, 130, 16), (1, 4, 97, 16)])
def test_equals_sdpa_and_the_sums_alone(shape: tuple[int, ...], dtype: torch.dtype, piece_bytes: int | None) -> None:
    query, key, value = states(*shape, kv_heads=2, dtype=dtype)
    output, sums = attention_and_sums(query, key, value, scale=0.25, piece_bytes=piece_bytes)
    wanted = scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.25, enable_gqa=True)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(output, wanted, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(sums, column_sums(query, key, scale=0.25, causal=True), atol=2e-5, rtol=1e-5)
    assert output.transpose(1, 2).is_contiguous()  # as the layer reads it


@pytest.mark.parametrize("piece_bytes", [None, 1])
def test_what_padding_holds_changes_nothing(piece_bytes: int | None) -> None:
    query, key, value = states(2, 4, 120, 8, kv_heads=2)
    valid = torch.arange(120) >= torch.tensor([[0], [41]])
    found = attention_and_sums(query, key, value, scale=0.3, key_valid=valid, piece_bytes=piece_bytes)
    noisy = [each.masked_fill(~valid[:, None, :, None], 1e4) for each in (query, key, value)]
    among = attention_and_sums(*noisy, scale=0.3, key_valid=valid, piece_bytes=piece_bytes)
    assert torch.equal(found[1], among[1])
    assert torch.equal(found[0], among[0])
    alone = attention_and_sums(*(each[1:, :, 41:] for each in (query, key, value)), scale=0.3)
    torch.testing.assert_close(found[0][1:, :, 41:], alone[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1][1:, :, 41:], alone[1], atol=1e-5, rtol=1e-5)


def test_rows_that_do_not_count_still_get_their_output() -> None:
    query, key, value = states(1, 2, 9, 8, kv_heads=2)
    counted = torch.arange(9)[None] > 5
    output, sums = attention_and_sums(query, key, value, scale=0.3, row_valid=counted)
    whole, _ = attention_and_sums(query, key, value, scale=0.3)
    assert torch.equal(output, whole)
    torch.testing.assert_close(sums, column_sums(query, key, scale=0.3, causal=True, row_valid=counted))


@pytest.mark.parametrize(("h", "g", "dtype"), [(4, 4, torch.float32), (4, 2, torch.bfloat16), (4, 1, torch.float32)])
@pytest.mark.parametrize("padded", [False, True])
def test_no_intermediate_comes_near_a_map(h: int, g: int, dtype: torch.dtype, padded: bool) -> None:
    query, key, value = states(1, h, 2880, 16, kv_heads=g, dtype=dtype)
    valid = torch.arange(2880)[None] >= 7 if padded else None
    with Largest(query, key, value) as largest:
        attention_and_sums(query, key, value, scale=0.25, key_valid=valid)
    assert 4 * 2880 < largest.bytes < 0.05 * 4 * h * 2880**2


def test_every_core_gets_a_piece_of_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def largest(cores: int) -> int:
        monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
        query, key, value = states(1, 8, 2880, 8, kv_heads=8)
        with Largest(query, key, value) as found:
            attention_and_sums(query, key, value, scale=0.3)
        return found.bytes

    sizes = [largest(cores) for cores in (1, 2, 64)]
    assert sizes[0] < sizes[1] < sizes[2] < 0.05 * 4 * 8 * 2880**2


def test_each_part_of_the_map_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exponentials that are taken: those below the diagonal once, and at most a piece's rows beside each row."""
    made, plain = [], torch.softmax
    monkeypatch.setattr(attended.torch, "softmax", lambda x, **how: made.append(x.numel()) or plain(x, **how))
    query, key, value = states(2, 4, 700, 8, kv_heads=2)
    attention_and_sums(query, key, value, scale=0.3)
    below = 2 * 4 * 700 * 701 // 2
    assert below <= sum(made) < below + 2 * 4 * 700 * 100


def test_gradients_are_refused() -> None:
    query, key, value = states(1, 2, 5, 4, kv_heads=2)
    with pytest.raises(RuntimeError, match="automatic differentiation"):
        attention_and_sums(query.requires_grad_(), key, value, scale=0.3)


def test_inputs_are_not_changed_and_modes_do_not_matter() -> None:
    query, key, value = states(1, 4, 50, 8, kv_heads=2)
    before = [each.clone() for each in (query, key, value)]
    with torch.inference_mode():
        first = attention_and_sums(query, key, value, scale=0.3)
    again = attention_and_sums(query, key, value, scale=0.3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, (query, key, value), strict=True))
