"""Applies what a prefill filter selected: the sequence, its states and rotary tables, and who was merged into whom."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokcomp.ops.merging import apply_selection
from tokcomp.runner.apply import compress_index, gather_tokens, kept_mask, kept_of, tidy, with_protected
from tokcomp.runner.passes import Pass
from tokcomp.runner.sequence import Sequence
from tokcomp.types import Selection

__all__ = ["shorten"]


def shorten(run: Pass, layer: int, hidden: Tensor, slots: Tensor, real: Tensor, selection: Selection,
            protected: Tensor | None, *, number_anew: bool) -> Tensor:  # fmt: skip
    """Shorten the pass's sequence. Costs one look at the device, none where all rows are known to keep equally many.

    Args:
        run: the pass; its ``sequence``, ``changed`` and ``moved`` are set.
        layer: the layer that has just run.
        hidden: its output ``[b, l, d]``.
        slots: where the vision tokens stand ``[b, n]``; ``real``: which of these are no padding.
        selection: which of the n go on. Merged tokens stand in the column of their representative.
        protected: ``[b, n]`` tokens that go on whatever was selected, or None.
        number_anew: the shortened sequence is numbered 0, 1, 2...

    Returns:
        The hidden states ``[b, l', d]`` that go on.
    """
    kept = kept_mask(selection, real)
    if kept is None:
        return _merge(run, layer, hidden, slots, real, selection, protected, number_anew=number_anew)
    known = None if selection._mask is not None or selection.ragged else selection.keep.shape[1]
    if protected is not None:
        kept, known = kept | protected, None
    cut = _Cut.of(run, slots, kept, known)
    if cut is None:
        return hidden
    run.go_on(cut.sequence(cut.taken, run, number_anew=number_anew))
    return gather_tokens(hidden, cut.taken)


def _merge(run: Pass, layer: int, hidden: Tensor, slots: Tensor, real: Tensor, selection: Selection,
           protected: Tensor | None, *, number_anew: bool) -> Tensor:  # fmt: skip
    """The same where tokens were merged, or stand in another order."""
    sequence = run.sequence
    assert sequence is not None
    selection = tidy(selection, real, uniform=sequence.uniform)
    if protected is not None:
        selection = with_protected(selection, protected)
    k = selection.keep.shape[1]
    kept = kept_of(selection.keep, real.shape[1], ragged=selection.ragged)
    cut = _Cut.of(run, slots, kept, None if selection.ragged else k, whole=False)
    assert cut is not None
    vision, rank = cut.ranks()
    rank = rank.clamp(max=k - 1)
    taken = slots.gather(1, selection.keep.clamp(min=0)).gather(1, rank).where(vision, cut.taken)
    after = cut.sequence(taken, run, number_anew=number_anew)
    shortened = gather_tokens(hidden, taken)
    if selection.assign is not None:
        merged, sizes = apply_selection(
            gather_tokens(hidden, slots), sequence.sizes_at(run.request.prompt, slots), selection
        )
        shortened = gather_tokens(merged, rank).where(vision[..., None], shortened)
        rest = sequence.sizes_at(run.request.prompt, taken)
        after = replace(after, sizes=sizes.gather(1, rank).where(vision, rest))
        run.request.merges[layer] = _homes(run, sequence.index.gather(1, slots), selection)
    run.go_on(after)
    return shortened


@dataclass(frozen=True)
class _Cut:
    """Columns that leave a sequence.

    Attributes:
        before: the sequence.
        vision: ``[b, l]`` the vision tokens that go on, ``counts`` of each row.
        taken: ``[b, l']`` the columns that go on; ``valid``: which of these are no padding, None for all.
    """

    before: Sequence
    vision: Tensor
    counts: tuple[int, ...]
    taken: Tensor
    valid: Tensor | None

    @classmethod
    def of(cls, run: Pass, slots: Tensor, kept: Tensor, known: int | None, *, whole: bool = True) -> _Cut | None:
        """All text goes on, and of the vision tokens at ``slots`` ``[b, n]`` those ``kept`` ``[b, n]``: ``known`` of each row,
        or unknown. None where nothing leaves and the sequence stays ``whole``."""
        before = run.sequence
        assert before is not None
        known = known if before.uniform else None
        if whole and known == before.n_vision:
            return None
        vision = torch.zeros_like(before.vision).scatter(1, slots, kept)
        if not before.uniform:  # rows with fewer vision tokens have slots that are none
            vision = vision & before.vision
        counts = tuple(vision.sum(dim=1).tolist()) if known is None else (known,) * len(before.counts)
        if whole and before.uniform and counts == before.counts:
            return None
        keep = vision == before.vision
        if before.valid is not None:
            keep = keep & before.valid
        lengths = [text + count for text, count in zip(before.texts, counts, strict=True)]
        taken = compress_index(keep, max(lengths))
        return cls(before, vision, counts, taken, None if len(set(lengths)) == 1 else keep.gather(1, taken))

    def sequence(self, taken: Tensor, run: Pass, *, number_anew: bool) -> Sequence:
        """The sequence of the columns ``taken``: those that go on, as they stand or with vision tokens in another order."""
        return self.before.take(taken, self.valid, self.vision, self.counts, number_anew=number_anew,
                                first=run.request.first_position)  # fmt: skip

    def ranks(self) -> tuple[Tensor, Tensor]:
        """Which of ``taken`` are vision tokens ``[b, l']``, and which survivor stands in each ``[b, l']``."""
        vision = self.vision.gather(1, self.taken)
        return vision, (vision.cumsum(dim=1) - 1).clamp(min=0)


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
