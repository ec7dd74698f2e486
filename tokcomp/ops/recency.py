"""The first and the last entries of ragged rows, wherever their padding stands."""

from __future__ import annotations

from torch import Tensor

__all__ = ["first", "last"]


def first(valid: Tensor, n: int | Tensor) -> Tensor:
    """The first ``n`` valid entries of each row ``[..., l]`` bool; all of them where a row has fewer.

    Args:
        valid: ``[..., l]`` False where an entry is padding.
        n: entries per row, one number or one per row (broadcastable to ``[...]``).
    """
    return valid & (valid.cumsum(dim=-1) <= _column(n))


def last(valid: Tensor, n: int | Tensor) -> Tensor:
    """The last ``n`` valid entries of each row ``[..., l]`` bool; all of them where a row has fewer."""
    rank = valid.sum(dim=-1, keepdim=True) - valid.cumsum(dim=-1)  # valid entries that come after
    return valid & (rank < _column(n))


def _column(n: int | Tensor) -> int | Tensor:
    return n[..., None] if isinstance(n, Tensor) else n
