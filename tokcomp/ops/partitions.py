"""How a budget is shared between the rows of large images: a thumbnail and its tiles (HiRED)."""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor

__all__ = ["partition_budgets"]


def partition_budgets(attention: Tensor, place: Tensor, valid: Tensor, owners: tuple[int, ...], *,
                      keep: float | int, alpha: float, patches: int) -> Tensor:  # fmt: skip
    """How many tokens each row keeps (HiRED, arXiv 2408.10945).

    An image of P rows of N tokens keeps ``trunc(P N keep)``: the first row, the thumbnail, the share ``alpha`` of these but
    not more than N, the tiles the rest in proportion to how many of the thumbnail's ``trunc(N (1 - alpha))`` tokens of highest
    attention lie in each tile's piece of it, truncated in float32. The pieces are equal stretches of the flat raster, as in
    the published code. An image of one row keeps ``trunc(N keep)``; one whose budget covers all of its tokens keeps them.

    Args:
        attention: ``[b, n]`` scores of each row's tokens; only the thumbnails' are read.
        place: ``[b, n]`` patch at which each token stands.
        valid: ``[b, n]`` False for padding.
        owners: the image that each row belongs to, ascending.
        keep: the paper's rate, a share of all tokens; or, an integer, tokens for each row on average.
        alpha: the thumbnail's share of the budget.
        patches: patches of a whole row.

    Returns:
        ``[b]``, at least 1 and at most the row's own tokens.
    """
    runs = [len(list(group)) for _, group in groupby(owners)]
    starts = [sum(runs[:number]) for number in range(len(runs))]
    device = attention.device
    counts = valid.sum(dim=1)
    base = torch.tensor([start for start, run in zip(starts, runs, strict=True) for _ in range(run)], device=device)
    tile = torch.tensor([number for run in runs for number in range(run)], device=device)
    tiles = torch.tensor([run - 1 for run in runs for _ in range(run)], device=device)
    whole = counts[base]  # (b,) tokens of each row's thumbnail
    total = (tiles + 1) * keep if isinstance(keep, int) else ((tiles + 1).double() * whole * keep).long()
    full = torch.minimum((total.double() * alpha).long(), whole)
    rest = torch.minimum(total - full, tiles * whole)

    scores = attention.float().masked_fill(~valid, -torch.inf)
    order = scores.sort(dim=1, descending=True, stable=True).indices
    salient = torch.arange(order.shape[1], device=device) < (counts.double() * (1 - alpha)).long()[:, None]
    marks = torch.zeros(len(owners), patches, dtype=torch.long, device=device)
    marks.scatter_add_(1, place.gather(1, order).where(salient, 0), salient.long())
    below = torch.nn.functional.pad(marks.cumsum(dim=1), (1, 0))[base]  # (b, patches + 1) of the thumbnail
    first, end = ((tile + step) * patches // tiles.clamp(min=1) for step in (-1, 0))
    inside = below.gather(1, end.clamp(0, patches)[:, None]) - below.gather(1, first.clamp(0, patches)[:, None])
    share = inside[:, 0].float() / below[:, -1].clamp(min=1).float() * rest.float()
    budget = torch.minimum(share.long(), counts)
    budget = budget.where(tile > 0, full.where(tiles > 0, total)).where(total < (tiles + 1) * whole, counts)
    return torch.minimum(budget.clamp(min=1), counts)
