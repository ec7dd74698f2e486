"""How many scores stand out, by the spread of the middle half (PruMerge)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["outlier_counts", "outlier_share"]


def outlier_counts(scores: Tensor, valid: Tensor, *, over_batch: bool = False) -> Tensor:
    """How many of an image's scores are outliers upwards: above ``Q3 + 1.5 (Q3 - Q1)``, quartiles by linear interpolation.

    Args:
        scores: ``[b, n]``.
        valid: ``[b, n]`` False for padding.
        over_batch: take the quartiles over the whole batch and give every image the same share of it, as published code
            does; an image's result then depends on its neighbours. Needs rows of equal length.

    Returns:
        ``[b]`` counts: the share of outliers times the number of scores, truncated in float64 as published.
    """
    scores, counts = scores.float(), valid.sum(dim=1)
    if over_batch:
        one = outlier_share(scores.flatten()[None], valid.flatten()[None]).expand(len(scores))
        return (counts.double() * one).long()
    return (counts.double() * outlier_share(scores, valid)).long()


def outlier_share(scores: Tensor, valid: Tensor) -> Tensor:
    """The share of outliers among the valid scores of each row ``[b]`` float64."""
    quartiles = scores.masked_fill(~valid, torch.nan).nanquantile(scores.new_tensor([0.25, 0.75]), dim=1)
    limit = quartiles[1] + 1.5 * (quartiles[1] - quartiles[0])
    return ((scores > limit[:, None]) & valid).sum(dim=1).double() / valid.sum(dim=1)
