"""Attention rows and column sums, against loops over the formulas and against golden vectors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.golden_cases import folders, group, meta
from tokcomp.ops.scores import attention_rows, column_sums


def loop_rows(query: Tensor, key: Tensor, scale: float, visible: Tensor) -> Tensor:
    """``softmax_j(scale q_i . k_j)`` over the visible keys, one row at a time, in float64."""
    b, h, t, _ = query.shape
    per_group = h // key.shape[1]
    rows = torch.zeros(b, h, t, key.shape[2], dtype=torch.float64)
    for sample in range(b):
        for head in range(h):
            for i in range(t):
                seen = visible[sample, head, i]
                if seen.any():
                    logits = key[sample, head // per_group].double() @ query[sample, head, i].double() * scale
                    rows[sample, head, i, seen] = logits[seen].softmax(0)
    return rows


def loop_sums(query: Tensor, key: Tensor, scale: float, causal: bool, key_valid: Tensor, row_valid: Tensor,
              rows: int | None) -> Tensor:  # fmt: skip
    """Column sums over the last ``rows`` valid rows; ``key_valid`` ``[b, g, l]``."""
    b, h, t, _ = query.shape
    g, length = key.shape[1:3]
    visible = key_valid.repeat_interleave(h // g, dim=1)[:, :, None].repeat(1, 1, t, 1)
    if causal:
        visible &= torch.ones(t, length, dtype=torch.bool).tril(length - t)
    weight = torch.zeros(b, t, dtype=torch.float64)
    for sample in range(b):
        counted = row_valid[sample].nonzero()[:, 0]
        weight[sample, counted if rows is None else counted[-rows:]] = 1
    full = loop_rows(query, key, scale, visible) * weight[:, None, :, None]
    return full.sum(dim=2).view(b, g, h // g, length).sum(dim=2)


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    b, g, per_group = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    length = draw(st.integers(1, 40))
    t = draw(st.integers(1, length))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    padding = draw(st.sampled_from(["none", "left", "right", "per head"]))
    pads = torch.randint(0, length, (b, g, 1), generator=generator)
    columns = torch.arange(length).expand(b, g, length)
    key_valid = {
        "none": torch.ones(b, g, length, dtype=torch.bool),
        "left": columns >= pads[:, :1].expand(b, g, 1),
        "right": columns < length - pads[:, :1].expand(b, g, 1),
        "per head": torch.rand(b, g, length, generator=generator) < 0.7,
    }[padding]
    return {
        "query": (2 * torch.randn(b, g * per_group, t, 6, generator=generator)).to(dtype),
        "key": torch.randn(b, length, g, 6, generator=generator).transpose(1, 2).to(dtype),
        "causal": draw(st.booleans()),
        "key_valid": key_valid,
        "padding": padding,
        "rows": draw(st.none() | st.integers(1, t + 2)),
        "chunk_bytes": draw(st.sampled_from([None, 1, 4096])),
    }


@settings(max_examples=60, deadline=None)
@given(problems())
def test_column_sums_are_those_of_the_loop(problem: dict[str, Any]) -> None:
    query, key, key_valid, padding = (problem[name] for name in ("query", "key", "key_valid", "padding"))
    t, length = query.shape[2], key.shape[2]
    per_head = padding == "per head"
    row_valid = torch.ones(query.shape[0], t, dtype=torch.bool) if per_head else key_valid[:, 0, length - t :]
    wanted = loop_sums(query, key, 0.3, problem["causal"], key_valid, row_valid, problem["rows"])
    sums = column_sums(
        query, key, scale=0.3, causal=problem["causal"], rows=problem["rows"], chunk_bytes=problem["chunk_bytes"],
        key_valid=None if padding == "none" else key_valid if per_head else key_valid[:, 0],
    )  # fmt: skip
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums, wanted.float(), atol=2e-5, rtol=1e-5)
    assert bool((sums[~key_valid] == 0).all())


def test_many_pieces_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.randn(2, 6, 40, 8), torch.randn(2, 3, 50, 8)
    whole = column_sums(query, key, scale=0.4, causal=True, chunk_bytes=2**30)
    monkeypatch.setattr("tokcomp.ops.scores._ROWS", (1, 7))
    monkeypatch.setattr("tokcomp.ops.scores._FLOOR_BYTES", 1)
    for chunk_bytes in (1, 3_000, 30_000):
        pieces = column_sums(query, key, scale=0.4, causal=True, chunk_bytes=chunk_bytes)
        torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=1e-5)
        last = column_sums(query, key, scale=0.4, causal=True, rows=20, chunk_bytes=chunk_bytes)
        torch.testing.assert_close(last, column_sums(query[:, :, -20:], key, scale=0.4, causal=True))


def test_rows_of_a_shorter_sample_are_its_own() -> None:
    query, key = torch.randn(1, 4, 12, 8), torch.randn(1, 2, 12, 8)
    padded = [torch.cat([x, torch.full_like(x[:, :, :5], 1e3)], dim=2) for x in (query, key)]
    valid = torch.arange(17)[None] < 12
    for rows in (None, 3, 14):
        alone = column_sums(query, key, scale=0.35, causal=True, rows=rows)
        right = column_sums(*padded, scale=0.35, causal=True, key_valid=valid, rows=rows)
        torch.testing.assert_close(right, torch.nn.functional.pad(alone, (0, 5)))


@settings(max_examples=40, deadline=None)
@given(problems(), st.booleans())
def test_attention_rows_are_those_of_the_loop(problem: dict[str, Any], additive: bool) -> None:
    query, key = problem["query"], problem["key"]
    per_group = query.shape[1] // key.shape[1]
    visible = problem["key_valid"].repeat_interleave(per_group, dim=1)[:, :, None]
    wanted = loop_rows(query, key, 0.3, visible.expand(-1, -1, query.shape[2], -1))
    mask = visible
    if additive:
        mask = torch.zeros(visible.shape, dtype=query.dtype).masked_fill(~visible, torch.finfo(query.dtype).min)
    rows = attention_rows(query, key, scale=0.3, mask=None if problem["padding"] == "none" else mask)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, wanted.float(), atol=1e-5, rtol=1e-5)


def test_additive_masks_weigh() -> None:
    query, key = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 5, 4)
    sizes = torch.tensor([1.0, 2.0, 1.0, 4.0, 3.0])
    logits = query @ key.transpose(-1, -2) * 0.5
    wanted = logits.exp() * sizes / (logits.exp() * sizes).sum(-1, keepdim=True)
    torch.testing.assert_close(attention_rows(query, key, scale=0.5, mask=sizes.log()), wanted)


def test_inputs_are_not_changed() -> None:
    query, key, valid = torch.randn(2, 4, 9, 4), torch.randn(2, 2, 9, 4), torch.ones(2, 9, dtype=torch.bool)
    before = query.clone(), key.clone()
    column_sums(query, key, scale=1.0, causal=True, key_valid=valid, rows=4)
    column_sums(query, key, scale=1.0, causal=True)
    attention_rows(query, key, scale=1.0, mask=valid[:, None, None])
    assert torch.equal(query, before[0])
    assert torch.equal(key, before[1])
    assert bool(valid.all())


class Largest(TorchDispatchMode):
    """The largest tensor that any operation brings into being, in bytes of memory of its own."""

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize(("h", "g", "dtype"), [(4, 4, torch.float32), (4, 2, torch.bfloat16)])
def test_no_intermediate_comes_near_a_map(h: int, g: int, dtype: torch.dtype) -> None:
    length = 2880
    query, key = torch.randn(1, h, length, 16).to(dtype), torch.randn(1, g, length, 16).to(dtype)
    with Largest(query, key) as largest:
        column_sums(query, key, scale=0.25, causal=True, chunk_bytes=2**40)
    assert largest.bytes < 0.05 * 4 * h * length**2
    assert largest.bytes > 4 * length


def test_wrong_shapes_are_named() -> None:
    query, key = torch.randn(1, 4, 3, 8), torch.randn(1, 3, 5, 8)
    with pytest.raises(ValueError, match="multiple of g"):
        attention_rows(query, key, scale=1.0)
    with pytest.raises(ValueError, match="3 causal query rows over 2 keys"):
        column_sums(query, key[:, :2, :2], scale=1.0, causal=True)
    with pytest.raises(ValueError, match="rows=0"):
        column_sums(query, key[:, :2], scale=1.0, causal=True, rows=0)


FULL = [pytest.param(folder, case, id=case) for folder in folders("full") for case in meta(folder)["cases"]]


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), FULL)
def test_statistics_of_the_full_cache(folder: Path, case: str) -> None:
    golden = group(folder, case)
    query, key, value = golden["q"], golden["k"], golden["v"]
    scale, groups = 1 / math.sqrt(query.shape[-1]), query.shape[1] // key.shape[1]

    def grouped(per_head: Tensor) -> Tensor:
        return per_head.unflatten(1, (-1, groups)).sum(dim=2)

    sums = column_sums(query, key, scale=scale, causal=True)
    torch.testing.assert_close(sums, grouped(golden["col_sum"]), atol=1e-5 * groups, rtol=1e-5)
    last = column_sums(query, key, scale=scale, causal=True, rows=8)
    torch.testing.assert_close(last, grouped(golden["col_sum_last8"]), atol=1e-5 * groups, rtol=1e-5)
    rows = attention_rows(query[:, :, -1:], key, scale=scale)
    output = rows @ value.repeat_interleave(groups, dim=1)
    torch.testing.assert_close(output, golden["attn_out_last"], atol=1e-5, rtol=1e-5)
