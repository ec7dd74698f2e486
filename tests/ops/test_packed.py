"""Packed entries and attention over them, against padded ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokcomp.ops.packed import Packed, packed_attention


def padded(counts: list[list[int]], d: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and which rows are entries, which stand anywhere."""
    generator = torch.Generator().manual_seed(seed)
    b, g, k = len(counts), len(counts[0]), max(map(max, counts)) + 2
    present = torch.zeros(b, g, k, dtype=torch.bool)
    for row, heads in enumerate(counts):
        for head, count in enumerate(heads):
            present[row, head, torch.randperm(k, generator=generator)[:count]] = True
    keys, values = (torch.randn(b, g, k, d, generator=generator) for _ in range(2))
    return keys, values, present


COUNTS = [[[1]], [[16, 32], [1, 47]], [[3, 40], [100, 17], [15, 33]], [[0, 5], [20, 0]]]


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_packing_holds_every_entry_once_and_nothing_else(counts: list[list[int]]) -> None:
    keys, values, present = padded(counts, 4)
    packed = Packed.pack(keys, values, present)
    total = sum(map(sum, counts))
    assert packed.keys.shape == packed.values.shape == (total, 4)
    assert packed.keys.untyped_storage().nbytes() == total * 4 * 4
    for back, given_ in zip(packed.unpack(), (keys, values), strict=True):
        assert torch.equal(back, given_.masked_fill(~present[..., None], 0.0))


def reference(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scale: float) -> Tensor:
    """Row by row and head by head, over the visible entries only."""
    b, h, t, _ = query.shape
    output = torch.zeros(b, h, t, values.shape[-1], dtype=torch.double)
    for row in range(b):
        for head in range(h):
            kv = head // (h // keys.shape[1])
            for i in range(t):
                seen = visible[row, kv, i]
                weights = (keys[row, kv, seen].double() @ query[row, head, i].double() * scale).softmax(0)
                output[row, head, i] = weights @ values[row, kv, seen].double()
    return output.to(query.dtype)


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.lists(st.integers(1, 40), min_size=2, max_size=2), min_size=1, max_size=3),
    group=st.sampled_from([1, 3]), t=st.integers(1, 4), more=st.integers(0, 5), seed=st.integers(0, 99),
)  # fmt: skip
def test_attention_is_that_over_all_entries(counts: list[list[int]], group: int, t: int, more: int, seed: int) -> None:
    keys, values, present = padded(counts, 8, seed)
    b, g, n = len(counts), 2, t + more
    generator = torch.Generator().manual_seed(seed + 1)
    query = 3 * torch.randn(b, g * group, t, 8, generator=generator)
    later, content = (torch.randn(b, g, n, 8, generator=generator) for _ in range(2))
    output = packed_attention(query, Packed.pack(keys, values, present), later, content, scale=0.4)
    causal = (torch.arange(n) <= torch.arange(n - t, n)[:, None]).expand(b, g, t, n)
    visible = torch.cat([present[:, :, None].expand(-1, -1, t, -1), causal], dim=-1)
    expected = reference(query, torch.cat([keys, later], 2), torch.cat([values, content], 2), visible, 0.4)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)


def test_large_logits_of_one_part_do_not_overflow() -> None:
    keys, values, present = padded([[20, 3]], 4)
    later = 40 * torch.ones(1, 2, 1, 4)
    output = packed_attention(10 * torch.ones(1, 2, 1, 4), Packed.pack(keys, values, present), later, later, scale=1.0)
    torch.testing.assert_close(output, torch.full_like(output, 40.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    keys, values, present = padded([[20, 33], [5, 16]], 8)
    query, later = torch.randn(2, 4, 2, 8), torch.randn(2, 2, 3, 8)
    exact = packed_attention(query, Packed.pack(keys, values, present), later, later, scale=0.3)
    packed = Packed.pack(keys.to(dtype), values.to(dtype), present)
    half = packed_attention(query.to(dtype), packed, later.to(dtype), later.to(dtype), scale=0.3)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), exact, atol=3e-2, rtol=0)


def test_rows_can_be_chosen() -> None:
    keys, values, present = padded([[20, 33], [5, 16], [7, 1]], 4)
    index = torch.tensor([2, 0, 0, 1])
    moved = Packed.pack(keys, values, present).rows(lambda x: x.index_select(0, index))
    again = Packed.pack(keys[index], values[index], present[index])
    assert torch.equal(moved.keys, again.keys)
    assert torch.equal(moved.values, again.values)
    assert torch.equal(moved.present, again.present)
