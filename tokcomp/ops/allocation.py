"""One layer's budget shared out to its heads by their scores."""

from __future__ import annotations

import torch
from torch import Tensor

from tokcomp.selection import Selection

__all__ = ["head_capacities", "keep_best_of_all"]


def keep_best_of_all(scores: Tensor, entries: Tensor, valid: Tensor, must: Tensor) -> Tensor:
    """The entries that a layer keeps if its heads' budgets are one: a mask ``[b, g, l]`` with ``entries.sum(-1)`` entries
    per sample (more only where more must stay).

    Args:
        scores: ``[b, g, l]``, comparable between heads.
        entries: uniform budget of each head ``[b, g]``.
        valid, must: ``[b, g, l]`` entries that are there, and those that stay in any case.
    """
    best = Selection.top_k(
        scores.flatten(1), entries.sum(dim=1), valid=valid.flatten(1), protected=must.flatten(1)
    ).keep
    return _mask(best, scores[0].numel()).view(scores.shape)


def head_capacities(scores: Tensor, capacity: Tensor, valid: Tensor, *, floor_share: float) -> tuple[Tensor, Tensor]:
    """AdaKV's published capacities: a share of every head's uniform capacity is fixed, the rest goes where the scores are.

    Args:
        scores: ``[b, g, l]`` of the entries that compete. ``valid``: which those are ``[b, g, l]``.
        capacity: uniform capacity of each head ``[b, g]``.
        floor_share: the share that is fixed.

    Returns:
        Entries of each head among the layer's best ``capacity.sum(-1)`` ones, and each head's capacity, ``[b, g]`` each.
    """
    none = torch.zeros_like(valid)
    count = keep_best_of_all(scores, capacity, valid, none).sum(dim=-1)
    fixed = (capacity.double() * floor_share).floor()
    return count, (count.double() * (1 - floor_share) + fixed).round().long()


def _mask(keep: Tensor, n: int) -> Tensor:
    chosen = torch.zeros(keep.shape[0], n + 1, dtype=torch.bool, device=keep.device)
    return chosen.scatter(1, keep.where(keep >= 0, n), True)[:, :n]
