"""Applies a selection to token states, and follows where every original token went.

Pure tensor functions that know no model and no strategy. Only :func:`merge_into` and the checks of the debug mode wait
for the device. Shapes are given for tokens; further leading axes (key/value heads) work alike, ``[b, g, ...]``, if the
selection has them too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokcomp.selection import Selection
from tokcomp.types import debugging

__all__ = ["apply_selection", "compose_source", "gather_tokens", "merge_into", "slots_of"]


def apply_selection(
    tokens: Tensor, sizes: Tensor, selection: Selection, *, cls_token: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Shorten ``tokens`` as ``selection`` says.

    Without ``assign`` this is a gather. With it, slot ``s`` becomes the weighted mean of the tokens assigned to it,
    ``sum_i w_i x_i / sum_i w_i``, with ``selection.weight`` or, where that is None, with the token sizes. A slot of one
    token is an exact copy of it, whatever its weight. With ``combine`` sum it becomes ``sum_i w_i x_i`` (weights 1 where
    none are given), with ``mix`` the row ``sum_i mix_si x_i`` over all tokens. Sums run in float32 (float64 for float64
    tokens); gradients flow to every token that takes part and are zero for dropped ones. On CUDA the order of the
    additions is free, as with every atomic sum, unless ``torch.use_deterministic_algorithms`` is on.

    Args:
        tokens: ``[b, n, d]``, any floating dtype. Values of dropped tokens are never read into a result (NaN is safe).
        sizes: ``[b, n]`` original patches that each token stands for.
        selection: ``keep`` ``[b or 1, k]``; ``assign`` and ``weight``, if given, ``[b or 1, n]``.
        cls_token: ``[b, d]`` what slot 0 holds where the selection says ``cls_first``; its size is 1.

    Returns:
        Tokens ``[b, k, d]`` in the dtype of ``tokens``, and their sizes ``[b, k]`` (the sum over a slot's members) in
        the dtype of ``sizes``. Padding slots (-1 in ``keep``) are zero in both.

    Raises:
        ValueError: the selection wants a CLS token and none is given; in debug mode, where the weights of a slot of
            several tokens sum to zero (the mean is undefined; outside debug mode the slot holds NaN or Inf).
    """
    if selection.assign is None:
        padded = selection.ragged
        moved = gather_tokens(sizes[..., None], selection.keep, padded=padded)[..., 0]
        return gather_tokens(tokens, selection.keep, padded=padded), moved

    plain = selection.combine == "mean" and selection.cls_first is None
    if plain and selection.complete and selection.weight is None and selection.mix is None:
        return _merged_rows(tokens, sizes, selection)
    slots = _filled_slots(selection, tokens)  # (b, n)
    k = selection.keep.shape[-1]
    merged_sizes = _sum_slots(sizes[..., None], slots, k + 1)[..., :k, 0]
    if selection.mix is not None:
        merged = _mixed(tokens, selection)
    elif selection.combine == "sum":
        exact = _exact(tokens.dtype)
        weight = torch.ones_like(sizes) if selection.weight is None else _broadcast(selection.weight, tokens)
        merged = _sum_slots(tokens * weight.to(exact)[..., None], slots, k + 1)[..., :k, :]
    else:
        merged = _means(tokens, sizes, selection, slots)
    merged = merged.to(tokens.dtype)
    if selection.cls_first is None:
        return merged, merged_sizes
    if cls_token is None:
        raise ValueError("cls_first was selected where there is no CLS token: see view.has_cls_token")
    there = selection.cls_first[:, None] & (torch.arange(k, device=tokens.device) == 0)  # (b, k)
    merged = cls_token[:, None].to(merged.dtype).where(there[..., None], merged)
    return merged, merged_sizes.masked_fill(there, 1)


def _merged_rows(tokens: Tensor, sizes: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """Means weighted by sizes where no token is dropped."""
    assert selection.assign is not None
    k, width = selection.keep.shape[-1], tokens.shape[-1]
    slots, own = _flat(_broadcast(selection.assign, tokens).long(), k), sizes.flatten()
    rows = len(own) // sizes.shape[-1] * k
    total = own.new_zeros(rows).index_add_(0, slots, own)
    # A token alone has the share 1, which leaves it as it is.
    share = (own / total[slots]).to(_exact(tokens.dtype)).view(sizes.shape)
    parts = tokens * share[..., None]
    merged = parts.new_zeros(rows, width).index_add_(0, slots, parts.flatten(0, -2))
    shape = *tokens.shape[:-2], k
    return merged.view(*shape, width).to(tokens.dtype), total.view(shape)


def _means(tokens: Tensor, sizes: Tensor, selection: Selection, slots: Tensor) -> Tensor:
    """The weighted mean of every slot's members ``[b, k, d]``."""
    k = selection.keep.shape[-1]
    exact = _exact(tokens.dtype)
    weight = (sizes if selection.weight is None else _broadcast(selection.weight, tokens)).to(exact)
    members = _sum_slots(torch.ones_like(weight)[..., None], slots, k + 1)[..., 0]
    # Weight 1 makes the sum over a slot of one token an exact copy of it.
    weight = weight.where(members.gather(-1, slots) > 1, 1.0)
    total = _sum_slots(weight[..., None], slots, k + 1).where(members[..., None] > 0, 1.0)
    if debugging() and bool((total[..., :k, :] == 0).any()):
        raise ValueError("the weights of a merged slot sum to zero: give every slot a token of positive weight")
    return _sum_slots(tokens * weight[..., None], slots, k + 1).div_(total)[..., :k, :]


def _mixed(tokens: Tensor, selection: Selection) -> Tensor:
    """Every slot's own combination of all tokens ``[b, k, d]``; padding slots are zero, unused tokens are not read."""
    assert selection.mix is not None
    exact = _exact(tokens.dtype)
    mix = selection.mix.to(exact).masked_fill((selection.keep < 0)[..., None], 0.0)
    unused = (mix == 0).all(dim=-2)
    return mix @ tokens.to(exact).masked_fill(unused[..., None], 0.0)


def _filled_slots(selection: Selection, tokens: Tensor) -> Tensor:
    """The slot of every token ``[b, n]``; tokens that are dropped get one slot beyond the last, which is cut off."""
    assert selection.assign is not None
    k = selection.keep.shape[-1]
    slots = _broadcast(selection.assign, tokens).long().remainder(k + 1)  # -1 becomes k
    if not selection.ragged:
        return slots
    spare = torch.nn.functional.pad(_broadcast(selection.keep, tokens) < 0, (0, 1), value=True)
    return slots.masked_fill(spare.gather(-1, slots), k)


def compose_source(source: Tensor, selection: Selection, n: int, *, whole: bool = False) -> Tensor:
    """Follow every original token through one more selection.

    Args:
        source: ``[b, n0]`` the token (0..n-1) in which each original token is now, -1 where it was dropped. The first
            time: ``torch.arange(n0).expand(b, n0)``.
        selection: what was decided for the ``n`` present tokens.
        n: number of tokens that the selection was made for.
        whole: no original token was dropped before.

    Returns:
        ``[b, n0]`` the output slot in which each original token is afterwards, -1 where it is dropped (now or before).
    """
    slots = slots_of(selection, n).expand(*source.shape[:-1], n)
    if whole and selection.complete:
        return slots.gather(-1, source)
    return slots.gather(-1, source.clamp(min=0)).masked_fill(source < 0, -1)


def slots_of(selection: Selection, n: int) -> Tensor:
    """The output slot of each of ``n`` input tokens ``[b or 1, n]``, -1 where it is dropped."""
    if selection.assign is not None:
        return selection.assign.long()
    keep = selection.keep
    slots = keep.new_full((*keep.shape[:-1], n + 1), -1, dtype=torch.long)
    order = torch.arange(keep.shape[-1], device=keep.device).expand(keep.shape)
    return slots.scatter(-1, keep.long().where(keep >= 0, n), order)[..., :n]


def merge_into(home: Tensor, place: Tensor, *, weight: Tensor | None = None, complete: bool = False) -> Selection:
    """The selection that merges every token into its home.

    Args:
        home: ``[b, n]`` the token that each token is merged into: itself where it survives, -1 where it is dropped (or
            is padding). A home must survive.
        place: ``[b, n]`` sort key: survivors stand in ascending order of it (equal keys in index order).
        weight: ``[b, n]`` passed on to the selection.
        complete: True promises that ``home`` holds no -1.

    Returns:
        A selection with ``assign``; rows with fewer survivors than the longest are padded with -1. Costs one device
        synchronisation, for the number of slots.
    """
    n = home.shape[-1]
    index = torch.arange(n, device=home.device).expand(home.shape)
    survives = home == index
    counts = survives.sum(-1)
    narrowest, widest = _extremes(counts)
    last = torch.inf if place.is_floating_point() else torch.iinfo(place.dtype).max
    order = place.masked_fill(~survives, last).argsort(dim=-1, stable=True)
    slots = torch.empty_like(order).scatter_(-1, order, index)
    keep, ragged = order[..., :widest], widest != narrowest
    if ragged:
        keep = keep.masked_fill(index[..., :widest] >= counts[..., None], -1)
    assign = slots.gather(-1, home) if complete else slots.gather(-1, home.clamp(min=0)).masked_fill(home < 0, -1)
    return Selection(keep=keep, assign=assign, weight=weight, ragged=ragged, complete=complete)


def gather_tokens(values: Tensor, keep: Tensor, *, padded: bool = True) -> Tensor:
    """Rows ``keep`` ``[b or 1, k]`` of ``values`` ``[b, n, d]`` as ``[b, k, d]``; zeros where ``keep`` is -1 (``padded``: it may
    be)."""
    index = _broadcast(keep, values).long()
    at = index.clamp(min=0) if padded else index
    rows = values.flatten(0, -2).index_select(0, _flat(at, values.shape[-2])).view(*index.shape, values.shape[-1])
    return rows.masked_fill_((index < 0)[..., None], 0) if padded else rows


def _extremes(counts: Tensor) -> tuple[int, int]:
    """Smallest and largest number, in one look at the device."""
    if counts.numel() == 1:
        return (int(counts),) * 2
    smallest, largest = torch.stack(counts.aminmax()).tolist()
    return smallest, largest


def _broadcast(values: Tensor, tokens: Tensor) -> Tensor:
    """``[1, x]`` as ``[b, x]``: one selection may serve the whole batch."""
    return values.expand(*tokens.shape[:-2], values.shape[-1])


def _flat(index: Tensor, n: int) -> Tensor:
    """Indices ``[..., x]`` into rows of ``n`` as indices into all rows laid end to end."""
    rows = index.flatten(0, -2)
    if len(rows) == 1:
        return rows[0]
    return (rows + torch.arange(0, n * len(rows), n, device=index.device)[:, None]).flatten()


def _exact(dtype: torch.dtype) -> torch.dtype:
    """The precision of sums of tokens of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _sum_slots(values: Tensor, slots: Tensor, k: int) -> Tensor:
    """Sum ``values`` ``[b, n, d]`` over the tokens of each of ``k`` slots: ``[b, k, d]``.

    Whole rows are added (``index_add`` on the flattened batch), which is many times faster than a ``scatter_add`` that
    looks up an index for every number.
    """
    sums = values.new_zeros(slots.flatten(0, -2).shape[0] * k, values.shape[-1])
    return sums.index_add_(0, _flat(slots, k), values.flatten(0, -2)).view(*values.shape[:-2], k, values.shape[-1])
