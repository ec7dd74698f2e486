"""A prompt's vision tokens shown to a prefill filter image by image, or frame by frame, each as if it were a sample: budgets per
image instead of one for all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from tokcomp.runner.apply import check_selection, kept_mask, tidy, true_first
from tokcomp.runner.request import Request
from tokcomp.stages import PrefillFilter
from tokcomp.types import PrefillView, Selection

__all__ = ["Divided", "parts_of"]

_OF_TOKENS = ("tokens", "valid", "sizes", "origin", "protected", "image")
_OF_SAMPLES = ("_rows", "_text", "_text_valid", "_text_keys", "_digest")
_ODD = -7046029254386353131


def parts_of(request: Request, per: str) -> tuple[Tensor, int]:
    """Which part of its sample each column of the prompt belongs to ``[b, l]``, and how many parts a sample has at most.

    Args:
        per: ``image``: images and videos; ``row``: what the tower encodes at once, an image, a tile or a frame. Separators
            belong to what stands before them.
    """
    prompt = request.prompt
    if per == "image":
        return prompt.image.clamp(min=0), max(request.images_of)
    assert prompt.unit is not None
    assert prompt.call is not None
    numbers: list[Tensor] = []
    for call, images in enumerate(request.images):
        number = [0] * images.n_rows
        for rows in request.rows_of:
            for place, (owner, row) in enumerate(rows):
                if owner == call:
                    number[row] = place
        flat = images.flat
        numbers.append(torch.tensor(number, device=flat.device)[flat // images.n_units].to(prompt.unit.device))
    starts = torch.tensor([0, *accumulate(len(each) for each in numbers)], device=prompt.unit.device)
    there = prompt.unit >= 0
    part = torch.cat(numbers)[(starts[prompt.call.clamp(min=0)] + prompt.unit).where(there, 0)]
    places = torch.arange(part.shape[1], device=part.device)
    before = places.where(there, -1).cummax(dim=1).values.clamp(min=0)
    return part.gather(1, before), max(len(rows) for rows in request.rows_of)


@dataclass(frozen=True)
class Divided:
    """The vision tokens ``[b, n]`` of a view, dealt out to ``parts`` rows for each sample.

    Attributes:
        index: where each token of a part stands in its sample ``[b * parts, w]``; ``valid``: which of these are real.
    """

    index: Tensor
    valid: Tensor
    parts: int

    @classmethod
    def of(cls, part: Tensor, valid: Tensor, parts: int) -> Divided:
        """``part`` ``[b, n]`` of each token, of which ``valid`` are real. One look at the device tells the largest part."""
        own = (part[:, None] == torch.arange(parts, device=part.device)[:, None]) & valid[:, None]  # (b, parts, n)
        own = own.flatten(0, 1)
        counts = own.sum(dim=1)
        width = int(counts.max())
        index = true_first(own)[:, :width]
        return cls(index, torch.arange(width, device=part.device) < counts[:, None], parts)

    def shown(self, view: PrefillView, initial: Tensor) -> PrefillView:
        """The view of the parts, which had ``initial`` ``[b * parts]`` tokens when the prefill began."""

        def dealt(value: Tensor, axis: int = 1) -> Tensor:
            repeated = value.repeat_interleave(self.parts, dim=0)
            shape = [1] * value.dim()
            shape[0], shape[axis] = self.index.shape
            whole = list(repeated.shape)
            whole[axis] = self.index.shape[1]
            return repeated.gather(axis, self.index.view(shape).expand(whole))

        changed: dict[str, Any] = {name: self._tokens(getattr(view, name)) for name in _OF_TOKENS}
        changed["_extra"] = {name: self._tokens(value) for name, value in view._extra.items()}
        changed["valid"] = self.valid
        changed["protected"] = changed["protected"] & self.valid
        for name in _OF_SAMPLES:
            value = getattr(view, name)
            changed[name] = None if value is None else value.repeat_interleave(self.parts, dim=0)
        if view._digest is not None:  # images of one prompt draw different numbers
            changed["_digest"] = (
                changed["_digest"] + torch.arange(self.parts, device=view.device).repeat(view.batch_size) * _ODD
            )
        if view._attention is not None:
            changed["_attention"] = dealt(view._attention, 3).masked_fill(~self.valid[:, None, None], 0.0)
        if view._keys is not None:
            changed["_keys"] = dealt(view._keys, 2)
        return replace(view, **changed, padded=True, initial=initial)

    def _tokens(self, value: Tensor) -> Tensor:
        """``[b, n]`` or ``[b, n, d]`` as ``[b * parts, w]`` or ``[b * parts, w, d]``, without a copy of all for each part."""
        row = torch.arange(value.shape[0], device=value.device).repeat_interleave(self.parts)
        return value[row[:, None], self.index]

    def select(self, strategy: PrefillFilter, view: PrefillView, initial: Tensor, who: str) -> Selection:
        """What the filter selects of each part, as one selection of the samples' tokens."""
        shown = self.shown(view, initial)
        chosen, b = strategy.filter(shown), view.batch_size
        check_selection(chosen, self.valid, who=who)
        kept = kept_mask(chosen, self.valid)
        if kept is not None:
            return Selection.from_mask(self._whole(kept & self.valid, view.n_tokens))
        chosen = tidy(chosen, self.valid, uniform=False)
        keep = chosen.keep
        places = self.index.gather(1, keep.clamp(min=0)).where(keep >= 0, -1).view(b, -1)
        order = true_first(places >= 0)
        kept = places.gather(1, order)
        ragged = replace(chosen, keep=kept, protect=None, ragged=True, ascending=False)
        if chosen.assign is None:
            return ragged
        # Slot s of a part is slot s of that part's stretch of the table, then where the sort put it.
        slots = torch.zeros_like(order).scatter(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        first = torch.arange(self.parts, device=keep.device).repeat(b)[:, None] * keep.shape[1]
        rows = torch.arange(b, device=keep.device).repeat_interleave(self.parts)[:, None]
        slot = slots[rows, (first + chosen.assign).clamp(min=0)].where(chosen.assign >= 0, -1)
        n = view.n_tokens
        column = self.index.where(self.valid, n)
        assign = slot.new_full((b, n + 1), -1).index_put((rows.expand_as(column), column), slot)[:, :n]
        weight = chosen.weight
        if weight is not None:
            weight = weight.new_zeros(b, n + 1).index_put((rows.expand_as(column), column), weight)[:, :n]
        return replace(ragged, assign=assign, weight=weight)

    def _whole(self, kept: Tensor, n: int) -> Tensor:
        """The tokens ``kept`` ``[b * parts, w]`` of the parts as a mask of the samples' tokens ``[b, n]``."""
        b = kept.shape[0] // self.parts
        none = torch.zeros(b, n + 1, dtype=torch.bool, device=kept.device)
        return none.scatter(1, self.index.where(kept, n).view(b, -1), True)[:, :n]
