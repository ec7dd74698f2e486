"""Budgets that shrink linearly with depth."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["pyramid_budgets"]


def pyramid_budgets(
    mean: Tensor, length: Tensor, window: Tensor, *, depth: int, beta: float,
    rounding: Literal["exact", "kvpress", "original"] = "exact",
) -> Tensor:  # fmt: skip
    """Entries of every layer, on a line from the first layer's to the last one's.

    The last layer gets ``mean / beta`` and the first one what makes ``mean`` their average, no more than the sequence
    has; then the last layer gets more.

    Args:
        mean: entries of a layer on average, window included ``[b]`` (real for ``kvpress``).
        length: entries that there are ``[b]``.
        window: entries that stay in any case ``[b]``.
        depth: layers.
        beta: how many times less than the average the last layer gets.
        rounding: ``exact``: every layer gets at least one entry beside the window, and the largest remainders are rounded
            up, so that the layers have ``depth * mean`` in all. ``kvpress``: rounded half to even; all layers alike
            where the last one would get less than the window. ``original``: integers throughout, the window on top of a
            line of the rest, whose step is truncated, so that the layers have more in all; all layers alike where
            the sequence has less than twice the rest.

    Returns:
        ``[b, depth]`` int.
    """
    mean, length, window = mean.double(), length.double(), window.double()
    if rounding == "original":
        return _original(mean.long(), length.long(), window.long(), depth, int(beta))
    if rounding == "kvpress":
        low, high = _clamped(mean / beta, mean, length - window)
        line = (high[:, None] - torch.arange(depth, device=mean.device) * _step(low, high, depth)).round()
        fits = (length >= high) & (high >= low) & (low >= window)
        return torch.where(fits[:, None], line, mean.round()[:, None]).long()
    if depth == 1:
        return mean.round().long()[:, None]
    low, high = _clamped((mean / beta).maximum(window + 1).minimum(mean), mean, length)
    line = high[:, None] - torch.arange(depth, device=mean.device) * _step(low, high, depth)
    floors = (line + 1e-9).floor()
    missing = (depth * mean).round()[:, None] - floors.sum(dim=1, keepdim=True)
    # The k layers with the largest remainders get one more; among equals the earlier ones.
    order = (line - floors).sort(dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter(1, order, torch.arange(depth, device=order.device).expand_as(order))
    return (floors + (rank < missing)).long()


def _clamped(low: Tensor, mean: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """Both ends of the line ``[b]``: the high one no more than ``most``."""
    high = 2 * mean - low
    over = high >= most
    return torch.where(over, 2 * mean - most, low), torch.where(over, most, high)


def _step(low: Tensor, high: Tensor, depth: int) -> Tensor:
    return ((high - low) / max(depth - 1, 1))[:, None]


def _original(mean: Tensor, length: Tensor, window: Tensor, depth: int, beta: int) -> Tensor:
    rest = mean - window
    low = rest // beta
    high = 2 * rest - low
    over = high >= length - window
    low, high = torch.where(over, 2 * rest - (length - window), low), torch.where(over, length - window, high)
    step = (high - low) // max(depth - 1, 1)
    line = high[:, None] - torch.arange(depth, device=mean.device) * step[:, None] + window[:, None]
    line = torch.where((length < 2 * rest)[:, None], mean[:, None], line)
    return torch.where((length < mean)[:, None], length[:, None], line)
