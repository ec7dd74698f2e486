"""Attention and what each key receives of it, in one pass over the map, which is never held as a whole."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["attention_and_sums"]

_HIDDEN = torch.finfo(torch.float32).min
_PIECE_BYTES = 2**21  # of one core: what a product has written stays in its cache for the softmax and the next product
_FLOOR_BYTES = 2**20
_MAP_SHARE = 1 / 32
_SMALL = 2**19  # bytes of a map that is faster made at once than by its halves
_ROWS = (16, 96)  # the fewest of a piece, and as many as make products efficient and waste little at the diagonal

_Block = tuple[slice, slice]  # samples, KV heads: side by side in [b * g]


def attention_and_sums(query: Tensor, key: Tensor, value: Tensor, *, scale: float, key_valid: Tensor | None = None,
                       row_valid: Tensor | None = None, piece_bytes: int | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Causal attention, and the sums of its columns that :func:`~tokcomp.ops.scores.column_sums` gives.

    For CPUs, outside of autograd. Each piece of the map, a few heads by a few rows by the keys that these see, is made
    once, in float32: its product with the values is the output of these rows, its sum over them goes to the keys.

    Args:
        query: rotated queries ``[b, h, t, d]``, the *last* t positions of the sequence.
        key: rotated keys ``[b, g, l, d]``. ``value``: ``[b, g, l, d_v]``.
        scale: factor of the logits.
        key_valid: ``[b, l]`` or, for caches that differ per KV head, ``[b, g, l]``; False hides the key.
        row_valid: ``[b, t]`` rows whose attention is summed. None: the last t columns of a ``[b, l]`` ``key_valid``, else
            all rows.
        piece_bytes: the memory that one piece may take. None: what stays in the caches of the cores in use, at most 1/32
            of the float32 map ``[b, h, l, l]``; a piece has at least 16 rows of one KV head.

    Returns:
        The output ``[b, h, t, d_v]`` in the query's dtype, 0 for rows that see no key, and the sums ``[b, g, l]`` float32.
    """
    (b, h, t, _), (g, length) = query.shape, key.shape[1:3]
    if row_valid is None and key_valid is not None and key_valid.dim() == 2:
        row_valid = key_valid[:, length - t :]
    counts = None if row_valid is None else row_valid[:, None]
    bias = sighted = None
    if key_valid is not None:
        shown = key_valid if key_valid.dim() == 3 else key_valid[:, None]  # (b, 1 or g, l)
        bias = query.new_zeros(shown.shape, dtype=torch.float32).masked_fill_(~shown, _HIDDEN)
        bias = bias.expand(b, g, length).reshape(b * g, 1, length)
        sighted = shown.long().cumsum(dim=2)[:, :, length - t :] > 0
        counts = sighted if counts is None else counts & sighted
    weights = None if counts is None else counts.float().expand(b, g, t).reshape(b * g, t)
    # Laid out as a decoder layer reads it, the heads of a token side by side.
    output = query.new_empty(b, t, h, value.shape[3]).transpose(1, 2).unflatten(1, (g, h // g))
    sums = torch.zeros(b * g, 1, length, dtype=torch.float32, device=query.device)
    blocks, heads, height = _blocks(b, g, h // g, t, length, piece_bytes)
    room = torch.empty(heads * h // g * height * length, dtype=torch.float32, device=query.device)
    start, grouped = 0, query.unflatten(1, (g, h // g))
    for block in blocks:
        keys, values = (states[block].float().flatten(0, 1) for states in (key, value))
        flat = slice(start, start := start + keys.shape[0])
        _attend(grouped[block], keys, values, scale, room, height, None if bias is None else bias[flat],
                None if weights is None else weights[flat], output[block], sums[flat])  # fmt: skip
    if sighted is not None:
        output.masked_fill_(~sighted[:, :, None, :, None], 0)
    return output.flatten(1, 2), sums.view(b, g, length)


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float, room: Tensor, height: int, bias: Tensor | None,
            weights: Tensor | None, output: Tensor, sums: Tensor) -> None:  # fmt: skip
    """Fill ``output`` ``[s, n, r, t, d_v]`` and ``sums`` ``[s * n, 1, l]`` of a block of s samples and n KV heads: queries
    ``[s, n, r, t, d]``, keys and values ``[s * n, l, d]``, ``bias`` ``[s * n, 1, l]``, ``weights`` of the rows in the sums
    ``[s * n, t]``; ``room`` holds one piece."""
    s, n, r, t, d = query.shape
    length, later = key.shape[1], _later_keys(height, key.device)
    keys = key.transpose(1, 2)
    every = torch.ones(1, dtype=torch.float32, device=key.device)
    for i0 in range(0, t, height):
        i1 = min(i0 + height, t)
        c, end = i1 - i0, length - t + i1
        rows = query[:, :, :, i0:i1].float().reshape(s * n, r * c, d)
        piece = room[: s * n * r * c * end].view(s * n, r * c, end)
        if bias is None:
            torch.baddbmm(piece, rows, keys[:, :, :end], beta=0, alpha=scale, out=piece)
        else:
            torch.baddbmm(bias[:, :, :end], rows, keys[:, :, :end], alpha=scale, out=piece)
        if c > 1:
            piece.view(s * n, r, c, end)[..., end - c :].add_(later[:c, :c])
        torch.softmax(piece, dim=-1, out=piece)
        counted = every.expand(s * n, 1, r * c) if weights is None else weights[:, i0:i1].repeat(1, r)[:, None]
        sums[:, :, :end].baddbmm_(counted, piece)
        output[:, :, :, i0:i1] = torch.bmm(piece, value[:, :end]).view(s, n, r, c, -1)


@lru_cache(maxsize=4)
def _later_keys(rows: int, device: torch.device) -> Tensor:
    """What hides from each row of a piece the keys behind its own, at the piece's end."""
    return torch.full((rows, rows), -torch.inf, dtype=torch.float32, device=device).triu_(1)


def _blocks(b: int, g: int, r: int, t: int, length: int, piece_bytes: int | None) -> tuple[list[_Block], int, int]:
    """Samples and KV heads that are taken together, how many of these there are at most, and the rows of a piece."""
    row = 4 * r * length  # bytes of one row, for every query head of one KV head
    if piece_bytes is None:
        cores = _PIECE_BYTES * torch.get_num_threads()
        piece_bytes = min(cores, max(_FLOOR_BYTES, int(_MAP_SHARE * row * b * g * length)))
    most = max(_ROWS[1], _SMALL // (b * g * row))
    height = _even(t, max(min(most, piece_bytes // row), _ROWS[0]))
    height = min(-(-height // _ROWS[0]) * _ROWS[0], t)  # products of whole vectors are faster
    together = max(piece_bytes // (row * height), 1)
    if together >= g:
        samples = _even(b, together // g)
        return [(slice(i, i + samples), slice(None)) for i in range(0, b, samples)], samples * g, height
    heads = _even(g, together)
    return [(slice(i, i + 1), slice(j, j + heads)) for i in range(b) for j in range(0, g, heads)], heads, height


def _even(count: int, most: int) -> int:
    """The size of parts that are about equal, none larger than ``most``."""
    return -(-count // -(-count // min(most, count)))
