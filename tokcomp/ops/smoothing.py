"""Scores smoothed along the sequence, wherever its padding stands."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

__all__ = ["smooth"]


def smooth(scores: Tensor, valid: Tensor, *, kernel: int, pooling: Literal["average", "max"]) -> Tensor:
    """Each entry's score pooled with its neighbours', stride 1.

    Entries that are not valid are no neighbours: the others close ranks. Beyond the first and the last entry zeros are
    pooled, also by the average, which divides by ``kernel`` everywhere and so is low at the borders.

    Args:
        scores: ``[b, g, l]``, not negative.
        valid: ``[b, g, l]``.
        kernel: entries pooled, an odd number.
        pooling: how.

    Returns:
        ``[b, g, l]``; 0 where not valid.

    Raises:
        ValueError: an even kernel.
    """
    if kernel % 2 == 0:
        raise ValueError(f"kernel={kernel}: an even number of neighbours has no middle, give an odd one")
    order = (~valid).byte().argsort(dim=-1, stable=True)
    ranked = scores.masked_fill(~valid, 0.0).gather(-1, order)
    if pooling == "average":
        pooled = functional.avg_pool1d(ranked, kernel, stride=1, padding=kernel // 2, count_include_pad=True)
    else:
        pooled = functional.max_pool1d(ranked, kernel, stride=1, padding=kernel // 2)
    return scores.new_zeros(scores.shape).scatter(-1, order, pooled).masked_fill(~valid, 0.0)
