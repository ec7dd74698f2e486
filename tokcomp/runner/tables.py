"""Tables of cache entries, ``[b|1, 1|g, l]`` or with more behind it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["appended", "filled"]


def filled(valid: Tensor, length: int) -> Tensor:
    """``valid`` ``[..., m]`` with True for the entries that came after the first m, ``[..., length]``."""
    fresh = length - valid.shape[-1]
    return valid if fresh == 0 else torch.nn.functional.pad(valid, (0, fresh), value=True)


def appended(first: Tensor, then: Tensor) -> Tensor:
    """The entries of ``first`` and those of ``then``; one row, or one head, serves all of the other table."""
    b, g = (max(first.shape[axis], then.shape[axis]) for axis in (0, 1))
    return torch.cat([table.expand(b, g, *table.shape[2:]) for table in (first, then)], dim=2)
