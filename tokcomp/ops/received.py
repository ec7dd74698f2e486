"""The attention that tokens receive from each other: what stands in for a CLS token's attention where there is none, and
what a cached entry gets where more than causal order decides (windows, blocks, capped logits, sinks)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokcomp.ops.precision import without_autocast
from tokcomp.ops.scores import attention_rows, column_sums

__all__ = ["received_attention", "received_sums", "unsplit"]

_PIECE_BYTES = 32 * 2**20


def received_attention(
    query: Tensor, key: Tensor, *, scale: float, bias: Tensor | None = None, valid: Tensor | None = None
) -> Tensor:
    """How much attention each key receives, the mean over heads and query rows ``[b, l]`` float32; never l x l.

    Args:
        query: the rows that count ``[b, h, t, d]``: an image's own tokens.
        key: ``[b, g, l, d]``.
        scale: factor of the logits.
        bias: additive mask over the keys ``[b, 1, 1, l]``, as the tower's blocks get it.
        valid: ``[b, t]`` rows that are no padding, of the last t keys; padding neither gives nor receives.
    """
    b, h, t, _ = query.shape
    # Without this, padding would take its share of every row's softmax, and scores depend on what else is in the batch.
    seen = None if valid is None else torch.nn.functional.pad(valid, (key.shape[2] - t, 0), value=True)
    if bias is not None:
        # One more dimension carries the bias into the logits: q k scale + 1 / scale * bias * scale.
        more = bias.float().expand(b, key.shape[1], 1, key.shape[2]).transpose(-1, -2)
        key = torch.cat([key.float(), more], dim=-1)
        query = torch.cat([query.float(), query.new_full((b, h, t, 1), 1 / scale, dtype=torch.float32)], dim=-1)
    sums = column_sums(query, key, scale=scale, causal=False, key_valid=seen, row_valid=valid).sum(dim=1)  # (b, l)
    rows = t if valid is None else valid.sum(dim=1, keepdim=True)
    return sums / (h * rows)


def unsplit(states: Tensor) -> Tensor:
    """``[b, h, l, d]`` as one head of the full width ``[b, 1, l, h * d]``."""
    return states.transpose(1, 2).flatten(2)[:, None]


@without_autocast
def received_sums(query: Tensor, key: Tensor, *, scale: float, sees: Callable[[Tensor], Tensor],
                  row_valid: Tensor | None = None, rows: int | None = None, softcap: float | None = None,
                  sinks: Tensor | None = None, piece_bytes: int = _PIECE_BYTES) -> Tensor:  # fmt: skip
    """What :func:`~tokcomp.ops.scores.column_sums` gives for a causal mask, for any mask: per key, the attention that it
    receives, summed over rows and over the query heads of its group ``[b, g, l]`` float32.

    The map is made a few rows at a time and never held as a whole.

    Args:
        query: rotated queries ``[b, h, t, d]``, the last t positions of the sequence. ``key``: rotated keys ``[b, g, l, d]``.
        sees: positions of some rows ``[r]`` -> the keys that they see ``[b|1, 1|h, r, l]`` bool.
        row_valid: ``[b, t]`` rows that count; None: all.
        rows: sum only over the last ``rows`` of those; None: over all of them.
        softcap, sinks: see :func:`~tokcomp.ops.scores.attention_rows`.
        piece_bytes: the memory that the rows of one piece may take.
    """
    b, h, t, _ = query.shape
    g, length = key.shape[1:3]
    counted = row_valid
    if rows is not None and rows < t:
        counted = torch.ones(b, t, dtype=torch.bool, device=query.device) if row_valid is None else row_valid
        later = counted.long().flip(1).cumsum(dim=1).flip(1)  # (b, t): valid rows from here on, this one included
        counted = counted & (later <= rows)
    keys = key.float()
    height = max(piece_bytes // (4 * b * h * length), 1)
    sums = torch.zeros(b, g, length, dtype=torch.float32, device=query.device)
    for i0 in range(0, t, height):
        piece = query[:, :, i0 : i0 + height]
        at = torch.arange(length - t + i0, length - t + i0 + piece.shape[2], device=query.device)
        attention = attention_rows(piece, keys, scale=scale, mask=sees(at), softcap=softcap, sinks=sinks)
        if counted is not None:
            attention.mul_(counted[:, None, i0 : i0 + height, None])
        sums += attention.view(b, g, -1, length).sum(dim=2)
    return sums
