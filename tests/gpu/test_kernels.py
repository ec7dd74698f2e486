"""The Triton kernels give what the chunked path gives; rows from half-precision keys what float32 keys give."""

from __future__ import annotations

import pytest
import torch

from tokcomp.ops.scores import attention_rows, column_sums

pytestmark = pytest.mark.gpu

CASES = [
    # b, h, g, t, l, d, dtype, padding, causal, rows: every one compiles its kernels, so each covers several things
    (1, 8, 8, 640, 640, 128, torch.bfloat16, "none", True, None),
    (2, 14, 2, 333, 333, 64, torch.bfloat16, "left", True, None),
    (2, 4, 2, 70, 70, 20, torch.float32, "left", True, 35),
    (1, 2, 1, 33, 200, 80, torch.float16, "heads", True, None),
    (1, 2, 1, 33, 200, 64, torch.float32, "none", False, None),
]


@pytest.mark.parametrize(("b", "h", "g", "t", "length", "d", "dtype", "padding", "causal", "rows"), CASES)
def test_column_sums(b: int, h: int, g: int, t: int, length: int, d: int, dtype: torch.dtype, padding: str, causal: bool,
                     rows: int | None) -> None:  # fmt: skip
    query = torch.randn(b, h, t, d, device="cuda").to(dtype)
    key = torch.randn(b, g, length, d, device="cuda").to(dtype)
    valid = None
    if padding == "left":
        valid = torch.arange(length, device="cuda") >= torch.arange(b, device="cuda")[:, None]
    elif padding == "heads":
        valid = torch.rand(b, g, length, device="cuda") > 0.2
    given = {"scale": d**-0.5, "causal": causal, "key_valid": valid, "rows": rows}
    fused = column_sums(query, key, **given)
    chunked = column_sums(query, key, chunk_bytes=2**20, **given)
    torch.testing.assert_close(fused, chunked, atol=1e-4, rtol=1e-4)


def test_column_sums_of_transposed_inputs() -> None:
    """Queries and keys come as ``[b, t, h, d]`` seen from the side."""
    query = torch.randn(2, 50, 4, 32, device="cuda").transpose(1, 2)
    key = torch.randn(2, 50, 2, 32, device="cuda").transpose(1, 2)
    fused = column_sums(query, key, scale=0.2, causal=True)
    torch.testing.assert_close(
        fused, column_sums(query, key, scale=0.2, causal=True, chunk_bytes=2**20), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(fused.sum(), torch.tensor(2 * 4 * 50.0, device="cuda"))


def test_column_sums_need_no_map() -> None:
    b, h, length, d = 1, 16, 3000, 64
    query, key = (torch.randn(b, h, length, d, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    column_sums(query, key, scale=0.1, causal=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    column_sums(query, key, scale=0.1, causal=True)
    assert torch.cuda.max_memory_allocated() - before < 0.05 * 4 * b * h * length * length


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_rows(dtype: torch.dtype) -> None:
    query = torch.randn(2, 8, 5, 64, device="cuda").to(dtype)
    key = torch.randn(2, 70, 2, 64, device="cuda").to(dtype).transpose(1, 2)
    rows = attention_rows(query, key, scale=0.125)
    torch.testing.assert_close(rows, attention_rows(query.float(), key.float(), scale=0.125), atol=1e-5, rtol=1e-4)
