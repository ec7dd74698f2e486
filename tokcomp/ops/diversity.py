"""Choosing tokens that differ from each other: farthest points, determinantal point processes, pruning of near-duplicates.

The greedy choices take one step per chosen token, each step one vector operation for the whole batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokcomp.ops.similarity import unit

__all__ = ["drop_duplicates", "farthest_points", "greedy_map"]

_NOISE = 1e-4


def farthest_points(features: Tensor, k: int, valid: Tensor) -> Tensor:
    """``k`` tokens, each as far as possible from those chosen before (DivPrune, arXiv 2503.02175).

    The distance is 1 minus the cosine. The first is the token whose nearest neighbour is farthest; then always the one whose
    nearest chosen token is farthest. The lower index wins among equals.

    Args:
        features: ``[b, n, d]``.
        k: tokens to choose, at most n.
        valid: ``[b, n]`` False for padding, which is chosen last.

    Returns:
        ``[b, k]`` indices in the order of choice.
    """
    directions = unit(features)
    distance = 1 - directions @ directions.transpose(-1, -2)  # (b, n, n)
    distance.masked_fill_(~valid[:, None], torch.inf)  # padding is nobody's neighbour
    itself = torch.eye(distance.shape[1], dtype=torch.bool, device=features.device)
    score = distance.masked_fill(itself, torch.inf).amin(dim=-1)  # alone in its row: infinitely far
    gap = torch.full_like(score, torch.inf)
    barred = torch.zeros_like(score).masked_fill(~valid, torch.finfo(score.dtype).min)
    order = []
    for _ in range(k):
        chosen = (score.clamp(max=2.0) + barred).argmax(dim=-1, keepdim=True)  # (b, 1)
        order.append(chosen)
        barred = barred.scatter(1, chosen, -torch.inf)
        score = gap = gap.minimum(_row(distance, chosen))
    return torch.cat(order, dim=1)


def greedy_map(features: Tensor, quality: Tensor, k: int, valid: Tensor) -> Tensor:
    """``k`` tokens that greedily maximise the determinant of the kernel ``q_i cos(x_i, x_j) q_j`` (CDPruner, arXiv
    2506.10967; the fast greedy rule of Chen et al., NeurIPS 2018).

    Where the kernel's rank is used up (of every token's own square less than 1e-4 is left, which is noise) the tokens of
    lowest index follow.

    Args:
        features: ``[b, n, d]``.
        quality: ``[b, n]`` float.
        k: tokens to choose, at most n.
        valid: ``[b, n]`` False for padding, which is chosen last.

    Returns:
        ``[b, k]`` indices in the order of choice.
    """
    b, n, _ = features.shape
    scaled = unit(features) * quality.float().masked_fill(~valid, 0.0)[..., None]
    kernel = scaled @ scaled.transpose(-1, -2)  # (b, n, n)
    gain = kernel.diagonal(dim1=-2, dim2=-1)
    noise = _NOISE * gain
    # Below every gain, lower index first, padding behind all others.
    last = -1.0 - torch.arange(n, device=features.device) - n * (~valid).float()
    factors = kernel.new_zeros(b, k, n)
    order = []
    for step in range(k):
        best = gain.where((gain > noise) | gain.isneginf(), last)
        chosen = best.argmax(dim=-1, keepdim=True)  # (b, 1)
        order.append(chosen)
        known = factors[:, :step].gather(2, chosen[:, None].expand(-1, step, 1))  # (b, step, 1)
        left = _row(kernel, chosen) - (known.transpose(1, 2) @ factors[:, :step])[:, 0]
        height = gain.gather(1, chosen)
        counts = height > noise.gather(1, chosen)
        new = (left / height.clamp(min=torch.finfo(torch.float32).tiny).sqrt()).where(counts, 0.0)
        factors[:, step] = new
        gain = (gain - new.square()).scatter(1, chosen, -torch.inf)
    return torch.cat(order, dim=1)


def drop_duplicates(
    features: Tensor, items: Tensor, length: Tensor, keep: Tensor, *, most: int, per_round: int = 8
) -> Tensor:
    """Drop from a list, a few per round, the tokens that most resemble another one (VisPruner, arXiv 2412.01818).

    A round splits the list by places into evens E and odds F; the ``per_round`` tokens of E whose most similar token of F
    (cosine) is most similar leave. The new list is what is left of E by descending similarity, then F: the order decides how
    the next round splits. Rows that have come down to ``keep`` rest.

    Args:
        features: ``[b, n, d]``.
        items: ``[b, m]`` indices, the list of each row from the left.
        length: ``[b]`` how many of them there are.
        keep: ``[b]`` how many are left in the end.
        most: the largest number in ``keep``, so that the device need not be asked.

    Returns:
        ``[b, k]`` the indices that are left, padded with -1.
    """
    directions = unit(features)
    similarity = directions @ directions.transpose(-1, -2)  # (b, n, n)
    length, keep = length[:, None], torch.minimum(keep, length)[:, None]
    while items.shape[1] > most:
        leaving = torch.minimum((length - keep).clamp(max=per_round), (length + 1) // 2)  # all of E at most
        items = _one_round(similarity, items, length, leaving).where(leaving > 0, items)
        length = length - leaving
        # The longest list has lost that many or is done; nothing stands beyond it.
        items = items[:, : max(most, items.shape[1] - min(per_round, (items.shape[1] + 1) // 2))]
    place = torch.arange(items.shape[1], device=items.device)
    return items.masked_fill(place >= keep, -1)


def _one_round(similarity: Tensor, items: Tensor, length: Tensor, leaving: Tensor) -> Tensor:
    """The list after one round ``[b, m]``; ``leaving`` ``[b, 1]`` tokens of E go."""
    evens, odds = items[:, ::2], items[:, 1::2]
    place = torch.arange(items.shape[1], device=items.device).expand_as(items)
    in_evens, in_odds = place[:, ::2] < length, place[:, 1::2] < length
    b, n, _ = similarity.shape
    others = torch.ones(b, n + 1, dtype=torch.bool, device=items.device)
    others = others.scatter(1, odds.where(in_odds, n), False)[:, :n]  # not in F
    # Whole rows, F found by a mask: many times faster than picking columns. Without any counterpart a token resembles nobody.
    at = (evens + n * torch.arange(b, device=items.device)[:, None]).flatten()
    rows = similarity.reshape(b * n, n).index_select(0, at).view(b, -1, n)
    near = rows.masked_fill_(others[:, None], -2.0).amax(dim=-1)  # (b, |E|)
    ranked = near.masked_fill(~in_evens, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    of_evens = in_evens.sum(dim=1, keepdim=True)
    rank_evens = (place[:, : evens.shape[1]] - leaving).where(place[:, : evens.shape[1]] < of_evens, -1)
    rank_odds = (place[:, : odds.shape[1]] + of_evens - leaving).where(in_odds, -1)
    rank = torch.cat([rank_evens, rank_odds], dim=1)
    moved = items.new_zeros(items.shape[0], items.shape[1] + 1)
    both = torch.cat([evens.gather(1, ranked), odds], dim=1)
    return moved.scatter(1, rank.where(rank >= 0, items.shape[1]), both)[:, :-1]


def _row(matrix: Tensor, index: Tensor) -> Tensor:
    """Row ``index`` ``[b, 1]`` of ``matrix`` ``[b, n, m]`` as ``[b, m]``."""
    return matrix.gather(1, index[..., None].expand(-1, -1, matrix.shape[-1]))[:, 0]
