"""Attention statistics: rows of the attention map, and what each key receives, without ever building an l x l map.

Notation: b batch, h query heads, g key/value heads (query head i reads KV head ``i // (h // g)``),
t query rows, l keys, d head size. All softmaxes and sums are float32 whatever the model's dtype: in half precision
equal scores are common, and they change which tokens survive.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from tokcomp.ops.precision import without_autocast

__all__ = ["attention_rows", "column_sums"]

_HIDDEN = torch.finfo(torch.float32).min
_MAP_SHARE = 1 / 32
_FLOOR_BYTES = 2**20
_WIDENING_PRODUCT = TorchVersion(torch.__version__) >= TorchVersion("2.8")  # bmm(half, half) -> float32
_ROWS = (16, 64)  # the fewest rows of a piece, and as many as make its matrix product efficient


@without_autocast
def attention_rows(query: Tensor, key: Tensor, *, scale: float, mask: Tensor | None = None, softcap: float | None = None,
                   sinks: Tensor | None = None) -> Tensor:  # fmt: skip
    """Softmax attention of the given query rows over all keys ``[b, h, t, l]``, float32.

    Args:
        query: rotated queries ``[b, h, t, d]``. Meant for the few rows that a strategy looks at: the result is t x l.
        key: rotated keys ``[b, g, l, d]``; KV heads are shared by groups of query heads, never repeated in memory.
        scale: factor of the logits, usually ``d ** -0.5``.
        mask: broadcastable to ``[b, h, t, l]``; bool (True: the row may attend to the key) or an additive float mask,
            in which anything at or below half the lowest number of its dtype hides the key. None: every key is seen.
        softcap: the logits are squeezed into (-softcap, softcap) by tanh before the mask (Gemma 2).
        sinks: a learned logit per query head ``[h]`` that takes part in the softmax and belongs to no key (gpt-oss).

    Returns:
        Rows that sum to 1 (less with sinks), except rows whose every key is hidden (padding), which are 0.

    Raises:
        ValueError: the shapes disagree.
    """
    b, h, t, d = query.shape
    g, keys = _kv_heads(query, key), key.shape[2]
    logits = _exact_product(query.reshape(b, g, h // g * t, d), key, scale).view(b, h, t, keys)
    if softcap is not None:
        logits = logits.div_(softcap).tanh_().mul_(softcap)
    if mask is None:
        return _softmax(logits, sinks)
    visible = mask
    if mask.dtype != torch.bool:
        visible = mask > torch.finfo(mask.dtype).min / 2
        logits += mask.float()
    rows = _softmax(logits.masked_fill_(~visible, _HIDDEN), sinks)
    return rows.mul_(visible.any(dim=-1, keepdim=True))


def _softmax(logits: Tensor, sinks: Tensor | None) -> Tensor:
    if sinks is None:
        return logits.softmax(dim=-1)
    sink = sinks.float()[None, :, None, None].expand(logits.shape[0], -1, logits.shape[2], 1)
    return torch.cat([logits, sink], dim=-1).softmax(dim=-1)[..., :-1]


def _exact_product(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """``scale * query @ key^T`` ``[b, g, t, l]`` float32, from ``[b, g, t, d]`` and ``[b, g, l, d]``."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    if query.is_cuda and half and _WIDENING_PRODUCT and not query.requires_grad:
        # Products of half-precision numbers are exact in float32, so the keys need no float32 copy.
        flat = torch.bmm(query.flatten(0, 1), key.flatten(0, 1).transpose(-1, -2), out_dtype=torch.float32)
        return flat.mul_(scale).view(*query.shape[:3], key.shape[2])
    return (query.float() * scale) @ key.float().transpose(-1, -2)


@without_autocast
def column_sums(
    query: Tensor,
    key: Tensor,
    *,
    scale: float,
    causal: bool,
    key_valid: Tensor | None = None,
    row_valid: Tensor | None = None,
    rows: int | None = None,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Attention that every key receives, summed over query rows and over the query heads of its KV group.

    On a GPU with Triton the map is made in tiles that never leave the chip (:mod:`tokcomp.ops.kernels`), with the same
    results. Elsewhere, or where ``chunk_bytes`` is given, it is made piece by piece, a few KV heads by a few rows at a
    time, each piece summed at once; under a causal mask only the keys that the piece can see are touched. Peak extra
    memory is about ``chunk_bytes`` or 1/32 of the float32 map ``[b, h, l, l]``, whichever is less, keys converted to
    float32 included; a piece has at least 16 rows of one KV head, which exceeds this only for short sequences and very
    long ones.

    Args:
        query: rotated queries ``[b, h, t, d]``, the *last* t positions of the sequence.
        key: rotated keys ``[b, g, l, d]``.
        scale: factor of the logits.
        causal: row i sees the keys up to ``i + l - t``.
        key_valid: ``[b, l]`` or, for caches that differ per KV head, ``[b, g, l]``; False hides the key.
        row_valid: ``[b, t]`` rows that count. None: the last t columns of a ``[b, l]`` ``key_valid``, else all rows.
        rows: sum only over the last ``rows`` valid rows of each sample; None: over all of them.
        chunk_bytes: the memory that one piece may take. None: the kernel where there is one, else 8 MiB on a CPU, where
            pieces that stay in its cache are fastest, and 128 MiB elsewhere, where few large steps are.

    Returns:
        ``[b, g, l]`` float32; 0 for hidden keys.

    Raises:
        ValueError: the shapes disagree, or ``rows`` is below 1.
    """
    _kv_heads(query, key)
    t, length = query.shape[2], key.shape[2]
    _refuse_rows(t, length if causal else None, rows)
    if row_valid is None and key_valid is not None and key_valid.dim() == 2 and t <= length:
        row_valid = key_valid[:, length - t :]
    # (1 or b, t): last key that a row sees; int32 is what the kernel reads
    position = torch.arange(length - t, length, device=query.device, dtype=torch.int32)[None]
    offset = length - t if causal else length  # piece [i0, i1) of rows in sequence order sees no key from i1 + this on
    if rows is not None and rows < t:
        query, position, row_valid = _last_rows(query, position, row_valid, rows)
        t, offset = rows, length  # rows of different samples no longer stand at one place
    visible = key_valid if key_valid is None or key_valid.dim() == 3 else key_valid[:, None]  # (b, 1 or g, l)
    seen_to = position if causal else None
    if chunk_bytes is None and _has_kernels(query):
        from tokcomp.ops.kernels import fused_column_sums

        return fused_column_sums(
            query, key, scale=scale, position=seen_to, skip=offset, visible=visible, counts=row_valid
        )
    if chunk_bytes is None:
        chunk_bytes = (8 if query.device.type == "cpu" else 128) * 2**20
    return _chunked_sums(query, key, scale, seen_to, offset, visible, row_valid, chunk_bytes)


def _chunked_sums(query: Tensor, key: Tensor, scale: float, position: Tensor | None, offset: int,
                  visible: Tensor | None, row_valid: Tensor | None, chunk_bytes: int) -> Tensor:  # fmt: skip
    """Column sums piece by piece; arguments as in :func:`column_sums`."""
    b, g, length, _ = key.shape
    t = query.shape[2]
    grouped = query.unflatten(1, (g, -1))  # (b, g, h / g, t, d)
    heads, height = _piece(grouped.shape, length, chunk_bytes)
    weights = _weights(position, visible, row_valid, t)
    hidden = None if visible is None else ~visible[:, :, None, None]
    sums = torch.zeros(b, g, length, dtype=torch.float32, device=query.device)
    for g0 in range(0, g, heads):
        block = slice(g0, g0 + heads)
        keys = key[:, block].to(torch.float32, memory_format=torch.contiguous_format)
        unseen, counts = (each if each is None or each.shape[1] == 1 else each[:, block] for each in (hidden, weights))
        for i0 in range(0, t, height):
            end = min(length, i0 + height + offset)
            sums[:, block, :end] += _piece_sums(
                grouped[:, block, :, i0 : i0 + height],
                keys[:, :, :end],
                scale,
                None if position is None else position[:, i0 : i0 + height, None],
                0 if offset == length else i0 + offset,
                None if unseen is None else unseen[..., :end],
                None if counts is None else counts[:, :, i0 : i0 + height],
            )
    return sums


def _weights(position: Tensor | None, visible: Tensor | None, row_valid: Tensor | None, t: int) -> Tensor | None:
    """What a row weighs in the sums ``[b, 1 or g, t]`` float32: nothing where it does not count or sees no key. None: all
    weigh 1."""
    counted = None if row_valid is None else row_valid[:, None]
    if visible is not None:
        sighted = visible.any(dim=2, keepdim=True).expand(-1, -1, t)
        if position is not None:  # up to its own key
            sighted = sighted & (visible.byte().argmax(dim=2, keepdim=True) <= position[:, None])
        counted = sighted if counted is None else sighted & counted
    return None if counted is None else counted.float()


@cache
def _triton_installed() -> bool:
    return find_spec("triton") is not None


def _has_kernels(query: Tensor) -> bool:
    """Whether the Triton kernels run on this tensor's device (from Volta on, ROCm's builds included) and dtype."""
    fits = query.is_cuda and query.dtype in (torch.float32, torch.float16, torch.bfloat16) and not query.requires_grad
    return fits and _triton_installed()


def _piece_sums(query: Tensor, key: Tensor, scale: float, position: Tensor | None, start: int, hidden: Tensor | None,
                weights: Tensor | None) -> Tensor:  # fmt: skip
    """Column sums ``[b, g, l']`` of one piece: query ``[b, g, r, c, d]`` over key ``[b, g, l', d]``.

    Row i sees the keys up to ``position[:, i]``; keys before ``start`` are seen by every row.
    """
    b, g, r, c, d = query.shape
    end = key.shape[2]
    rows, keys = query.float().reshape(b * g, r * c, d), key.flatten(0, 1).transpose(1, 2)
    logits = torch.baddbmm(key.new_zeros(1), rows, keys, beta=0, alpha=scale)
    split = logits.view(b, g, r, c, end)
    if position is not None and end - start > 1:
        later = torch.arange(start, end, device=key.device) > position[:, None, None]
        split[..., start:].masked_fill_(later, _HIDDEN)
    if hidden is not None:
        split.masked_fill_(hidden, _HIDDEN)
    # One call that keeps a row where it is fast: maximum, exponentials, sum and quotient apart take twice as long.
    attention = logits.softmax(dim=-1)
    if weights is None:
        return attention.sum(dim=1).view(b, g, end)
    weighing = weights[:, :, None].expand(b, g, r, c).reshape(b * g, 1, r * c)
    return (weighing @ attention).view(b, g, end)


def _last_rows(
    query: Tensor, position: Tensor, row_valid: Tensor | None, rows: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The last ``rows`` valid rows of each sample, wherever its padding stands: queries, positions, validity."""
    if row_valid is None:
        return query[:, :, -rows:], position[:, -rows:].expand(query.shape[0], -1), None
    b, h, t, d = query.shape
    rank = torch.arange(t, device=query.device) + row_valid.long() * t  # valid rows after padding, both in order
    index = rank.topk(rows, dim=1).indices.sort(dim=1).values  # (b, rows)
    picked = query.gather(2, index[:, None, :, None].expand(b, h, rows, d))
    return picked, position.expand(b, -1).gather(1, index), row_valid.gather(1, index)


def _piece(grouped: torch.Size, length: int, chunk_bytes: int) -> tuple[int, int]:
    """KV heads and query rows of one piece, so that its logits and its float32 keys fit into the room there is."""
    b, g, r, t, d = grouped
    row = 2 * 4 * b * r * length  # bytes of one row, logits and attention, for every query head of one KV head
    room = min(chunk_bytes, max(_FLOOR_BYTES, int(_MAP_SHARE / 2 * row * g * length)))
    converted = 4 * b * length * d
    heads = min(max(room // (converted + row * min(t, _ROWS[1])), 1), g)
    heads = -(-g // -(-g // heads))  # pieces of even size
    height = (room // heads - converted) // row
    return heads, max(min(max(height, _ROWS[0]), t), 1)


def _refuse_rows(t: int, seen: int | None, rows: int | None) -> None:
    if seen is not None and t > seen:
        raise ValueError(f"{t} causal query rows over {seen} keys: the rows must be the last positions of the keys")
    if rows is not None and rows < 1:
        raise ValueError(f"rows={rows}: give at least 1, or None for all rows")


def _kv_heads(query: Tensor, key: Tensor) -> int:
    h, g = query.shape[1], key.shape[1]
    if query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3] or h % g:
        raise ValueError(
            f"query {tuple(query.shape)} and key {tuple(key.shape)} disagree: expected [b, h, t, d] and [b, g, l, d] "
            "with h a multiple of g"
        )
    return g
