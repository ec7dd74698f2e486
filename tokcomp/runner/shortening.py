"""Applies what a prefill filter selected: the sequence, its states and rotary tables, and who was merged into whom."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tokcomp.ops.merging import apply_selection
from tokcomp.runner.apply import compress_index, gather_tokens
from tokcomp.runner.passes import Pass
from tokcomp.runner.request import Sequence
from tokcomp.types import Selection

__all__ = ["shorten"]


def shorten(run: Pass, layer: int, hidden: Tensor, slots: Tensor, real: Tensor, selection: Selection, *,
            number_anew: bool) -> Tensor:  # fmt: skip
    """Shorten the pass's sequence.

    Args:
        run: the pass; its ``sequence``, ``changed`` and ``moved`` are set.
        layer: the layer that has just run.
        hidden: its output ``[b, l, d]``.
        slots: where the vision tokens stand ``[b, n]``; ``real``: which of these are no padding.
        selection: which of the n go on, cleaned. Merged tokens stand in the column of their representative.
        number_anew: the shortened sequence is numbered 0, 1, 2...

    Returns:
        The hidden states ``[b, l', d]`` that go on.
    """
    sequence = run.sequence
    assert sequence is not None
    n, k = slots.shape[1], selection.keep.shape[1]
    merges = selection.assign is not None
    if k == n and selection.ascending and not selection.ragged and not merges:
        return hidden
    kept = torch.zeros(slots.shape[0], n + 1, dtype=torch.bool, device=slots.device)
    kept = kept.scatter(1, selection.keep.where(selection.keep >= 0, n), True)[:, :n] & real
    keep = _columns_kept(sequence, slots, kept, real)
    width, n_vision, uniform, even = sequence.length - n + k, k, True, sequence.valid is None
    if not sequence.uniform or selection.ragged:
        # One look at the device tells how long the longest row is now, and whether all rows are of one length.
        counts = torch.stack([keep.sum(dim=1), kept.sum(dim=1)])
        (least, fewest), (width, n_vision) = torch.stack(counts.aminmax(dim=1)).tolist()
        uniform, even = n_vision == fewest, width == least
    taken = compress_index(keep, width)
    valid = None if even else keep.gather(1, taken)
    vision = rank = None
    if merges or not selection.ascending:
        vision, rank = _vision_ranks(sequence.length, taken, slots, kept, valid)
        rank = rank.clamp(max=k - 1)
        taken = slots.gather(1, selection.keep.clamp(min=0)).gather(1, rank).where(vision, taken)
    after = sequence.take(taken, valid, n_vision=n_vision, uniform=uniform, number_anew=number_anew,
                          first=run.request.first_position)  # fmt: skip
    shortened = gather_tokens(hidden, taken)
    if merges:
        assert vision is not None
        assert rank is not None
        merged, sizes = apply_selection(
            gather_tokens(hidden, slots), sequence.sizes_at(run.request.prompt, slots), selection
        )
        shortened = gather_tokens(merged, rank).where(vision[..., None], shortened)
        rest = sequence.sizes_at(run.request.prompt, taken)
        after = replace(after, sizes=sizes.gather(1, rank).where(vision, rest))
        run.request.merges[layer] = _homes(run, sequence.index.gather(1, slots), selection)
    run.sequence, run.changed, run.moved = after, True, True
    return shortened


def _columns_kept(sequence: Sequence, slots: Tensor, kept: Tensor, real: Tensor) -> Tensor:
    """Columns of the sequence that go on ``[b, l]``: all text, and the vision tokens in ``kept`` ``[b, n]``."""
    keep = torch.ones_like(sequence.index, dtype=torch.bool) if sequence.valid is None else sequence.valid
    # Slots that are no vision token (rows with fewer of them) stay what they are.
    return keep.scatter(1, slots, kept | (keep.gather(1, slots) & ~real))


def _vision_ranks(
    length: int, taken: Tensor, slots: Tensor, kept: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Which of the columns ``taken`` of ``length`` are vision tokens ``[b, l']``, and which survivor stands in each."""
    vision = torch.zeros(taken.shape[0], length, dtype=torch.bool, device=taken.device)
    vision = vision.scatter(1, slots, kept).gather(1, taken)
    if valid is not None:
        vision = vision & valid
    return vision, (vision.long().cumsum(dim=1) - 1).clamp(min=0)


def _homes(run: Pass, columns: Tensor, selection: Selection) -> Tensor:
    """For every column of the prompt the column of the token that it was merged into ``[b, l0]``.

    Args:
        columns: prompt columns of the n vision tokens ``[b, n]``.
    """
    assert selection.assign is not None
    slot = selection.assign.expand(columns.shape[0], -1)
    stands = columns.gather(1, selection.keep.clamp(min=0)).gather(1, slot.clamp(min=0))
    home = torch.arange(run.request.prompt.valid.shape[1], device=columns.device).repeat(columns.shape[0], 1)
    return home.scatter(1, columns, stands.where(slot >= 0, columns))
