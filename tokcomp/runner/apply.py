"""The only place that gathers: sequences, positions and cache entries, by what a strategy selected."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import torch
from torch import Tensor

from tokcomp.errors import TokcompError
from tokcomp.types import Selection, debugging

__all__ = [
    "check_selection",
    "clean_selection",
    "compress_index",
    "gather_entries",
    "gather_tokens",
    "kept_mask",
    "kept_of",
    "refuse_other",
    "renumber",
    "tidy",
    "true_first",
    "widened",
    "with_protected",
]


def clean_selection(selection: Selection, valid: Tensor, *, uniform: bool, who: str) -> Selection:
    """Bring a strategy's selection into the form that is applied: on the right device, one row per sample, padding that a
    strategy kept unaware of ``valid`` ``[b, n]`` taken out again.

    Raises:
        TokcompError: see :func:`check_selection`.
    """
    check_selection(selection, valid, who=who)
    return tidy(selection, valid, uniform=uniform)


def tidy(selection: Selection, valid: Tensor, *, uniform: bool) -> Selection:
    """The same without a check."""
    keep = selection.keep.to(valid.device)
    if keep.shape[0] != valid.shape[0]:
        keep = keep.expand(valid.shape[0], *keep.shape[1:])
    if uniform or selection.assign is not None:
        return replace(selection, keep=keep)
    picked = (keep >= 0) & valid.gather(1, keep.clamp(min=0))
    # Kept padding becomes -1; a stable sort moves it behind the kept tokens without changing their order.
    order = true_first(picked)
    keep = keep.masked_fill(~picked, -1).gather(1, order)
    protect = None if selection.protect is None else selection.protect.gather(1, order)
    return replace(selection, keep=keep, protect=protect, ragged=True)


def check_selection(selection: Selection, valid: Tensor, *, who: str) -> None:
    """Refuse what is no selection for tokens ``valid`` ``[b, n]``, and in debug mode one that breaks the contract.

    Raises:
        TokcompError: it is, or does.
    """
    refuse_other(selection, valid.shape[0], who=who)
    if not debugging():
        return
    keep = selection.keep.to(valid.device)
    if keep.shape[0] != valid.shape[0]:
        keep = keep.expand(valid.shape[0], *keep.shape[1:])
    some = valid.any(dim=1)  # nothing can be kept of a sample without images
    try:
        _of_rows(replace(selection, keep=keep), some).check(valid.shape[-1], batch_size=int(some.sum()))
    except (TypeError, ValueError) as error:
        raise TokcompError(f"{who} returned a wrong selection: {error}") from error


def refuse_other(selection: object, rows: int, *, who: str, dims: tuple[int, ...] = (2,)) -> None:
    """Refuse what cannot be applied to ``rows`` samples, as far as types and shapes tell: nothing is asked of the device.

    Raises:
        TokcompError: no :class:`Selection`, or one of other rows, dimensions or numbers.
    """
    if not isinstance(selection, Selection):
        raise TokcompError(
            f"{who} returned {type(selection).__name__}, expected a tokcomp.Selection: make one with Selection.top_k, "
            "Selection.from_mask or Selection.merge"
        )
    if vars(selection).get("_mask") is not None:
        return  # made by from_mask or top_k; its indices are not worked out before they are asked for
    kept, shape = selection.keep, tuple(selection.keep.shape)
    if len(shape) not in dims or shape[0] not in (1, rows):
        raise TokcompError(
            f"{who} returned a selection of shape {shape}, expected {rows} rows, one per sample: [batch, kept]"
        )
    if kept.is_floating_point() or kept.dtype == torch.bool:
        raise TokcompError(
            f"{who} returned indices that are {kept.dtype}, expected integers: Selection.from_mask makes a selection of flags"
        )


def kept_mask(selection: Selection, valid: Tensor) -> Tensor | None:
    """Which of the tokens ``valid`` ``[b, n]`` a selection keeps ``[b, n]``, where that is all it says: nothing is merged, and
    what stays stands in its order. Padding may be among them. None where it says more."""
    if selection.assign is not None or not selection.ascending:
        return None
    if selection._mask is not None:
        return selection._mask.to(valid.device).expand(valid.shape)
    keep = selection.keep.to(valid.device)
    return kept_of(keep.expand(valid.shape[0], -1), valid.shape[1], ragged=selection.ragged)


def kept_of(keep: Tensor, n: int, *, ragged: bool) -> Tensor:
    """The indices ``keep`` ``[b, k]``, of which some are -1 where they are ``ragged``, as a mask ``[b, n]``."""
    none = torch.zeros(keep.shape[0], n + ragged, dtype=torch.bool, device=keep.device)
    return none.scatter(1, keep.where(keep >= 0, n), True)[:, :n] if ragged else none.scatter(1, keep, True)


def _of_rows(selection: Selection, rows: Tensor) -> Selection:
    """The selection of those samples alone for which ``rows`` ``[b]`` is True."""
    if bool(rows.all()):
        return selection
    tensors = {field.name: getattr(selection, field.name) for field in fields(selection) if field.init}
    own = {name: value[rows] for name, value in tensors.items()
           if isinstance(value, Tensor) and value.shape[0] == rows.shape[0]}  # fmt: skip
    return replace(selection, **own)  # type: ignore[arg-type]


def compress_index(keep: Tensor, width: int) -> Tensor:
    """Where ``keep`` ``[b, l]`` is True, moved to the right end in order: indices ``[b, width]``. Rows that keep fewer than
    ``width`` are filled with dropped indices on the left (left padding)."""
    return keep.view(torch.uint8).argsort(dim=1, stable=True)[:, keep.shape[1] - width :]


def true_first(flags: Tensor) -> Tensor:
    """The indices of each row of ``flags`` ``[b, n]``, those where it is True first, both in ascending order. Seen as bytes,
    flags are sorted without a copy."""
    return flags.view(torch.uint8).argsort(dim=1, descending=True, stable=True)


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` ``[b, k]`` of ``x`` ``[b, l]`` or ``[b, l, d]``; an ``x`` of batch 1 serves every sample."""
    if x.shape[0] != index.shape[0]:
        x = x.expand(index.shape[0], *x.shape[1:])
    return x.gather(1, index) if x.dim() == 2 else _gather_rows(x, index)


def gather_entries(x: Tensor, index: Tensor) -> Tensor:
    """Cache entries ``index`` ``[b, g, k]`` of ``x`` ``[b, g, l]`` or ``[b, g, l, d]``."""
    return x.gather(2, index) if x.dim() == 3 else _gather_rows(x, index)


def _gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """Vectors ``index`` ``[..., k]`` of ``x`` ``[..., l, d]``.

    A CPU copies whole vectors four times faster than it looks up number by number; on a GPU the vectors' addresses would be
    two launches more.
    """
    *lead, length, d = x.shape
    if x.is_cpu and x.is_contiguous():
        if (groups := math.prod(lead)) > 1:
            index = index + torch.arange(0, groups * length, length, device=index.device).view(*lead, 1)
        return x.view(-1, d).index_select(0, index.flatten()).view(*index.shape, d)
    return x.gather(x.dim() - 2, index[..., None].expand(*index.shape, d))


def renumber(valid: Tensor) -> Tensor:
    """Positions 0, 1, 2... over the valid tokens of each row ``[b, l]``; padding gets 0."""
    return (valid.cumsum(dim=1) - 1).clamp(min=0)


def widened(selection: Selection, before: int) -> Selection:
    """A selection of the entries behind the first ``before``, as one of all entries, of which those stay."""
    if before == 0:
        return selection
    head = torch.arange(before, device=selection.keep.device)

    def behind(places: Tensor) -> Tensor:
        moved = (places + before).where(places >= 0, -1)
        return torch.cat([head.expand(*moved.shape[:-1], -1), moved], dim=-1)

    assign, weight = selection.assign, selection.weight
    return replace(
        selection,
        keep=behind(selection.keep),
        assign=None if assign is None else behind(assign),
        weight=None if weight is None else torch.nn.functional.pad(weight, (before, 0), value=1.0),
        protect=None,
    )


def with_protected(selection: Selection, protected: Tensor) -> Selection:
    """Add the key tokens ``protected`` ``[b, n]`` that a selection left out or merged into others, behind its own tokens of
    each row (or in their place, where the selection is ascending)."""
    keep = selection.keep
    n = protected.shape[1]
    chosen = kept_of(keep, n, ragged=True)
    missing = protected & ~chosen
    if not bool(missing.any()):
        return selection
    if selection.assign is None and selection.ascending:
        return replace(Selection.from_mask(chosen | protected), protect=None)
    added = Selection.from_mask(missing).keep
    both = torch.cat([keep, added], dim=1)
    order = true_first(both >= 0)
    both = both.gather(1, order)
    width = int((both >= 0).sum(dim=1).max())
    both = both[:, :width]
    if selection.assign is None:
        return Selection(keep=both)
    own = (keep >= 0).sum(dim=1, keepdim=True) + missing.long().cumsum(dim=1) - 1  # (b, n)
    mix = selection.mix
    if mix is not None:  # the added slots hold their own token alone
        alone = torch.nn.functional.one_hot(added.clamp(min=0), n).to(mix.dtype)
        order = order[:, :width, None].expand(-1, -1, n)
        mix = torch.cat([mix.expand(keep.shape[0], -1, -1), alone], dim=1).gather(1, order)
    return replace(
        selection, keep=both, assign=own.where(missing, selection.assign), mix=mix, protect=None, ragged=True
    )
