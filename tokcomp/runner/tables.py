"""Tables of cache entries, ``[b|1, 1|g, l]`` or with more behind it."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

__all__ = ["appended", "constant", "everywhere", "filled", "lengthened"]


def filled(valid: Tensor, length: int) -> Tensor:
    """``valid`` ``[..., m]`` with True for the entries that came after the first m, ``[..., length]``."""
    return lengthened(valid, length, True)


def lengthened(table: Tensor, length: int, value: float) -> Tensor:
    """``table`` ``[..., m]`` with ``value`` behind its entries, ``[..., length]``."""
    fresh = length - table.shape[-1]
    if fresh == 0:
        return table
    tail = constant(value, table.dtype, table.device).expand(*table.shape[:-1], fresh)
    return torch.cat([table, tail], dim=-1)


def everywhere(value: bool, like: Tensor) -> Tensor:
    """``value`` at each place of ``like``, in no memory of its own."""
    return constant(value, torch.bool, like.device).expand(like.shape)


@cache
def constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One number ``[1]``, made once."""
    with torch.inference_mode(False):  # a tensor that every later mode may read
        return torch.full((1,), value, dtype=dtype, device=device)


def appended(first: Tensor, then: Tensor) -> Tensor:
    """The entries of ``first`` and those of ``then``; one row, or one head, serves all of the other table."""
    b, g = (max(first.shape[axis], then.shape[axis]) for axis in (0, 1))
    return torch.cat([table.expand(b, g, *table.shape[2:]) for table in (first, then)], dim=2)
