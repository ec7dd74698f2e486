"""The attention that tokens receive from each other: what stands in for a CLS token's attention where there is none."""

from __future__ import annotations

import torch
from torch import Tensor

from tokcomp.ops.scores import column_sums

__all__ = ["received_attention", "unsplit"]


def received_attention(
    query: Tensor, key: Tensor, *, scale: float, bias: Tensor | None = None, valid: Tensor | None = None
) -> Tensor:
    """How much attention each key receives, the mean over heads and query rows ``[b, l]`` float32; never l x l.

    Args:
        query: the rows that count ``[b, h, t, d]``: an image's own tokens.
        key: ``[b, g, l, d]``.
        scale: factor of the logits.
        bias: additive mask over the keys ``[b, 1, 1, l]``, as the tower's blocks get it.
        valid: ``[b, t]`` rows that are no padding.
    """
    b, h, t, _ = query.shape
    if bias is not None:
        # One more dimension carries the bias into the logits: q k scale + 1 / scale * bias * scale.
        more = bias.float().expand(b, key.shape[1], 1, key.shape[2]).transpose(-1, -2)
        key = torch.cat([key.float(), more], dim=-1)
        query = torch.cat([query.float(), query.new_full((b, h, t, 1), 1 / scale, dtype=torch.float32)], dim=-1)
    sums = column_sums(query, key, scale=scale, causal=False, row_valid=valid).sum(dim=1)  # (b, l)
    rows = t if valid is None else valid.sum(dim=1, keepdim=True)
    return sums / (h * rows)


def unsplit(states: Tensor) -> Tensor:
    """``[b, h, l, d]`` as one head of the full width ``[b, 1, l, h * d]``."""
    return states.transpose(1, 2).flatten(2)[:, None]
