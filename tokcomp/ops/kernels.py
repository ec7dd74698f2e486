"""Triton kernels for GPUs: what every key receives, without a map and without chunks.

Two passes over the logits, each in tiles that never leave the chip: the first gives every row's log-sum-exp, the second sums
``exp(logit - lse)`` down each column. A row block skips the key blocks behind its last visible key, a column block the
rows before its first, so that each pass costs half of a full matrix product under a causal mask. Products are those of the
inputs' dtype, accumulated in float32: with half-precision inputs they are exact, as after a conversion to float32.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["fused_column_sums"]

_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _logits(q, k, at, visible, columns, scale, CAUSAL: tl.constexpr, PRECISION: tl.constexpr):
    """Logits of a tile in base 2 ``[M, N]``; -inf where the row must not see the key."""
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * _LOG2E)
    seen = visible[None, :]
    if CAUSAL:
        seen = seen & (columns[None, :] <= at[:, None])
    return tl.where(seen, logits, float("-inf"))


@triton.jit
def _row_lse(Q, K, LSE, AT, VISIBLE, scale, heads, group, t, length,
             qb, qh, qt, kb, kg, kt, ab, vb, vg,
             CAUSAL: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
             M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, DIM: tl.constexpr):  # fmt: skip
    """Log-sum-exp (base 2) of each row's logits; +inf for rows that see nothing, so that they give nothing."""
    b, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    rows, d = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, D)
    inside = rows < t
    q = tl.load(Q + b * qb + head * qh + rows[:, None] * qt + d[None, :],
                mask=inside[:, None] & (d[None, :] < DIM), other=0.0)  # fmt: skip
    at = tl.load(AT + b * ab + rows, mask=inside, other=-1)
    keys = K + b * kb + (head // group) * kg
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    end = length
    if CAUSAL:
        end = tl.minimum(tl.max(at, 0) + 1, length)
    for n0 in range(0, end, N):
        columns = n0 + tl.arange(0, N)
        visible = columns < length
        k = tl.load(keys + columns[:, None] * kt + d[None, :], mask=visible[:, None] & (d[None, :] < DIM), other=0.0)
        if MASKED:
            visible = visible & (tl.load(VISIBLE + b * vb + (head // group) * vg + columns, mask=visible, other=0) != 0)
        logits = _logits(q, k, at, visible, columns, scale, CAUSAL, PRECISION)
        higher = tl.maximum(top, tl.max(logits, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2(top - base) + tl.sum(tl.exp2(logits - base[:, None]), 1)
        top = higher
    lse = tl.where(total > 0, top + tl.log2(tl.where(total > 0, total, 1.0)), float("inf"))
    tl.store(LSE + tl.program_id(1).to(tl.int64) * t + rows, lse, mask=inside)


@triton.jit
def _column_sums(Q, K, LSE, AT, VISIBLE, COUNTS, OUT, scale, heads, group, t, length, skip,
                 qb, qh, qt, kb, kg, kt, ab, vb, vg, cb,
                 CAUSAL: tl.constexpr, MASKED: tl.constexpr, COUNTED: tl.constexpr, PRECISION: tl.constexpr,
                 M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, DIM: tl.constexpr):  # fmt: skip
    """Sums over rows and over the query heads of one group of ``exp(logit - lse)``."""
    groups = heads // group
    b, g = (tl.program_id(1) // groups).to(tl.int64), (tl.program_id(1) % groups).to(tl.int64)
    columns, d = tl.program_id(0) * N + tl.arange(0, N), tl.arange(0, D)
    visible = columns < length
    k = tl.load(K + b * kb + g * kg + columns[:, None] * kt + d[None, :],
                mask=visible[:, None] & (d[None, :] < DIM), other=0.0)  # fmt: skip
    if MASKED:
        visible = visible & (tl.load(VISIBLE + b * vb + g * vg + columns, mask=visible, other=0) != 0)
    sums = tl.zeros([N], tl.float32)
    first = tl.maximum(tl.program_id(0) * N - skip, 0) // M * M  # rows before it see none of these keys
    for member in range(group):
        head = g * group + member
        for m0 in range(first, t, M):
            rows = m0 + tl.arange(0, M)
            inside = rows < t
            q = tl.load(Q + b * qb + head * qh + rows[:, None] * qt + d[None, :],
                        mask=inside[:, None] & (d[None, :] < DIM), other=0.0)  # fmt: skip
            at = tl.load(AT + b * ab + rows, mask=inside, other=-1)
            lse = tl.load(LSE + (b * heads + head) * t + rows, mask=inside, other=float("inf"))
            if COUNTED:
                counts = tl.load(COUNTS + b * cb + rows, mask=inside, other=0)
                lse = tl.where(counts != 0, lse, float("inf"))
            logits = _logits(q, k, at, visible, columns, scale, CAUSAL, PRECISION)
            sums += tl.sum(tl.exp2(logits - lse[:, None]), 0)
    tl.store(OUT + tl.program_id(1).to(tl.int64) * length + columns, sums, mask=columns < length)


def fused_column_sums(query: Tensor, key: Tensor, *, scale: float, position: Tensor | None, skip: int,
                      visible: Tensor | None, counts: Tensor | None) -> Tensor:  # fmt: skip
    """Attention that every key receives, summed over rows and the query heads of its group ``[b, g, l]`` float32.

    Args:
        query: ``[b, h, t, d]``. ``key``: ``[b, g, l, d]``, h a multiple of g.
        scale: factor of the logits.
        position: last key that each row sees ``[1 or b, t]``, ascending; None: every row sees every key.
        skip: key j is seen by no row before ``j - skip`` (l where positions do not stand side by side).
        visible: keys that may be seen ``[b, 1 or g, l]`` bool; None: all.
        counts: rows that count ``[b, t]`` bool; None: all.
    """
    b, heads, t, dim = query.shape
    groups, length = key.shape[1], key.shape[2]
    query = query if query.stride(3) == 1 else query.contiguous()
    key = key if key.stride(3) == 1 else key.contiguous()
    at = torch.zeros(1, t, dtype=torch.int32, device=query.device) if position is None else position.int().contiguous()
    # Where there is nothing to read, any pointer will do.
    seen = at[:1, None] if visible is None else visible.to(torch.int8).contiguous()
    counted = at[:1] if counts is None else counts.to(torch.int8).contiguous()
    lse = torch.empty(b, heads, t, dtype=torch.float32, device=query.device)
    sums = torch.empty(b, groups, length, dtype=torch.float32, device=query.device)
    wide = max(16, triton.next_power_of_2(dim))
    small = query.dtype == torch.float32 or wide > 128
    m, n = (32, 32) if small else (128, 64)
    strides = (*query.stride()[:3], *key.stride()[:3], 0 if at.shape[0] == 1 else t,
               0 if seen.shape[0] == 1 else seen.stride(0), 0 if seen.shape[1] == 1 else length)  # fmt: skip
    shared = {"CAUSAL": position is not None, "MASKED": visible is not None, "D": wide, "DIM": dim,
              "PRECISION": "ieee" if query.dtype == torch.float32 else "tf32"}  # fmt: skip
    warps = 4 if small else 8
    _row_lse[(triton.cdiv(t, m), b * heads)](
        query,
        key,
        lse,
        at,
        seen,
        scale,
        heads,
        heads // groups,
        t,
        length,
        *strides,
        M=m,
        N=n,
        num_warps=warps,
        **shared,
    )
    m, n = (32, 32) if small else (64, 128)
    _column_sums[(triton.cdiv(length, n), b * groups)](
        query, key, lse, at, seen, counted, sums, scale, heads, heads // groups, t, length, skip, *strides,
        0 if counted.shape[0] == 1 else t, COUNTED=counts is not None, M=m, N=n, num_warps=warps, **shared,
    )  # fmt: skip
    return sums
