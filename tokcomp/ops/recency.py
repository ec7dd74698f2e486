"""The first and the last entries of ragged rows, wherever their padding stands."""

from __future__ import annotations

from torch import Tensor

__all__ = ["ends", "first", "last"]


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


def ends(valid: Tensor, n_first: int, n_last: int | Tensor, room: Tensor) -> Tensor:
    """The first ``n_first`` and the last ``n_last`` valid entries of each row, no more than ``room`` in all: the last ones
    come first.

    Args:
        valid: ``[..., l]``.
        n_last: one number or one per row (broadcastable to ``[...]``).
        room: entries of each row that there is room for ``[...]``.
    """
    n_last = room.clamp(max=n_last) if isinstance(n_last, int) else n_last.minimum(room)
    return last(valid, n_last) | first(valid, (room - n_last).clamp(max=n_first))
