"""Tokens that take up their most similar neighbours (PruMerge), where one token may give to several."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tokcomp.ops.merging import gather_tokens, merge_into
from tokcomp.ops.similarity import unit
from tokcomp.selection import Selection

__all__ = ["take_up_neighbours"]

_NEIGHBOURS = 32


def take_up_neighbours(
    rank: Tensor, weights: Tensor, keys: Tensor, valid: Tensor, *, neighbours: int = _NEIGHBOURS
) -> Selection:
    """Selected tokens take up their most similar neighbours, and one more token at the end gathers all others.

    With S the selected tokens and R the rest, ``y_c = x_c + sum_j w_j x_j`` for c in S, over the ``neighbours`` other
    tokens (of S and R) whose keys are most similar to its own by cosine, and ``y_* = sum_{j in R} w_j x_j``. Weights are
    not normalised. A row whose every token is selected is left as it is, without the token at the end.

    Args:
        rank: ``[b, n]`` integers: selected tokens stand in ascending order of it; -1 for tokens that are not selected.
        weights: ``[b, n]`` float.
        keys: ``[b, n, d]`` what tokens are compared by.
        valid: ``[b, n]`` False for padding.

    Returns:
        A selection with ``mix``; tokens that are not selected count to the last slot, which stands at the place of the one
        of highest weight.
    """
    b, n = rank.shape
    index = torch.arange(n, device=rank.device).expand(b, n)
    chosen = (rank >= 0) & valid
    rest = valid & ~chosen
    merges = rest.any(dim=1, keepdim=True)
    seat = weights.float().masked_fill(~rest, -torch.inf).argmax(dim=1, keepdim=True)
    home = index.where(chosen, seat.where(rest, -1))
    place = rank.where(chosen, torch.iinfo(rank.dtype).max - 1)
    plan = merge_into(home, place)
    mix = _mixture(plan.keep, chosen, rest, weights.float(), keys, valid & merges, neighbours)
    return replace(plan, mix=mix)


def _mixture(
    keep: Tensor, chosen: Tensor, rest: Tensor, weights: Tensor, keys: Tensor, givers: Tensor, neighbours: int
) -> Tensor:
    """The weight of every token in every slot ``[b, k, n]``."""
    n, ids = keys.shape[1], keep.clamp(min=0)
    unit_keys = unit(keys, floor=1e-12)
    similarity = gather_tokens(unit_keys, ids) @ unit_keys.transpose(-1, -2)  # (b, k, n)
    itself = torch.arange(n, device=keys.device) == ids[..., None]
    similarity = similarity.masked_fill(itself | ~givers[:, None], -torch.inf)
    # Stable: of equally similar neighbours the lower index is nearer, on every device.
    nearest = similarity.sort(dim=-1, descending=True, stable=True)
    most = min(neighbours, n)
    near = nearest.indices[..., :most]
    given = weights[:, None].expand(-1, keep.shape[1], -1).gather(2, near)
    given = given.where(nearest.values[..., :most] > -torch.inf, 0.0)
    mix = torch.zeros_like(similarity).scatter_(2, near, given).masked_fill(itself, 1.0)
    gathers = rest.gather(1, ids) & (keep >= 0)  # the slot at the end
    return (weights * rest)[:, None].where(gathers[..., None], mix)
