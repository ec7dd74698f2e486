"""Where evicted entries go: the surviving entry with the most similar key."""

from __future__ import annotations

import torch
from torch import Tensor

from tokcomp.ops.similarity import nearest
from tokcomp.selection import Selection

__all__ = ["nearest_survivor"]


def nearest_survivor(keys: Tensor, selection: Selection, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For every entry the slot of the kept entry of its head whose key is most similar by cosine.

    Args:
        keys: ``[b, g, l, d]``.
        selection: ``keep`` ``[b, k]`` or ``[b, g, k]``.
        valid: ``[b, g, l]``.

    Returns:
        The cosine ``[b, g, l]`` float32, the slot ``[b, g, l]`` (its own for a kept entry), and which entries are evicted.
    """
    b, g, n, d = keys.shape
    keep = selection.keep if selection.keep.dim() == 3 else selection.keep[:, None]
    keep = keep.expand(b, g, -1)
    k = keep.shape[-1]
    present, index = keep >= 0, keep.clamp(min=0)
    kept = torch.zeros(b, g, n + 1, dtype=torch.bool, device=keys.device)
    kept = kept.scatter(2, index.where(present, n), True)[..., :n]
    survivors = keys.gather(2, index[..., None].expand(b, g, k, d))
    # What padding holds must not spread; it is nobody's candidate.
    cosine, slot = nearest(
        keys.masked_fill(~valid[..., None], 0.0).flatten(0, 1), survivors.flatten(0, 1), present.flatten(0, 1)
    )
    cosine, slot = cosine.view(b, g, n), slot.view(b, g, n)
    own = torch.zeros(b, g, n + 1, dtype=slot.dtype, device=keys.device)
    own = own.scatter(2, index.where(present, n), torch.arange(k, device=keys.device).expand(b, g, k))[..., :n]
    return cosine, own.where(kept, slot), valid & ~kept
