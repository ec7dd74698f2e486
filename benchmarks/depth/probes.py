"""Strategies that know what no strategy may know, or leave when told to: for diagnosis, hence not registered."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from tokcomp.ops.hashing import uniform
from tokcomp.stages import CachePolicy, PrefillFilter, VisionReducer
from tokcomp.types import CacheView, PrefillView, Selection, Signal, VisionView

Ranks = tuple[tuple[float, ...], ...]
"""Per sample of a batch the worth of each of the image's tokens."""


def worth(owner: tuple[int, ...], *, objects: bool) -> tuple[float, ...]:
    """The worth of each patch to one who knows the objects: one patch of every glyph, the rest of the glyphs, background.

    Args:
        owner: per patch the glyph that it shows, -1 for background.
        objects: False turns it round: background first.
    """
    seen: set[int] = set()
    values = []
    # The middle patch of a glyph, in reading order, stands for it.
    middles = {cell: [i for i, o in enumerate(owner) if o == cell] for cell in set(owner) - {-1}}
    first = {patches[len(patches) // 2] for patches in middles.values()}
    for patch, cell in enumerate(owner):
        seen.add(cell)
        value = 0.0 if cell < 0 else 2.0 if patch in first else 1.0
        values.append(value if objects else -value)
    return tuple(values)


class RankedReducer(VisionReducer):
    """Keeps the ``keep_tokens`` most worthy tokens of every image."""

    name: ClassVar[str] = "ranked"
    ranks: Ranks
    keep_tokens: int

    def reduce(self, view: VisionView) -> Selection:
        ranks = torch.tensor(self.ranks, device=view.device).gather(1, view.origin)
        return Selection.top_k(ranks, self.keep_tokens, valid=view.valid)


class RankedFilter(PrefillFilter):
    """The same before layer ``layer`` of the language model."""

    name: ClassVar[str] = "ranked"
    ranks: Ranks
    keep_tokens: int
    layer: int

    def acts_after(self, depth: int) -> tuple[int, ...]:
        return (self.layer - 1,)

    def filter(self, view: PrefillView) -> Selection:
        ranks = torch.tensor(self.ranks, device=view.device).gather(1, view.origin.clamp(min=0))
        return Selection.top_k(ranks, self.keep_tokens, valid=view.valid)


def _places(view: CacheView) -> Tensor:
    """Which of the image's tokens each vision entry is (b, g, l), 0 elsewhere."""
    first = view.index.masked_fill(~view.vision, torch.iinfo(view.index.dtype).max).amin(-1, keepdim=True)
    return (view.index - first).masked_fill(~view.vision, 0)


class RankedPolicy(CachePolicy):
    """The same in the cache, text exempt: ``keep_ratio`` of all entries stay, text inside the budget."""

    name: ClassVar[str] = "ranked"
    ranks: Ranks
    keep_ratio: float

    def after_prefill(self, view: CacheView) -> Selection:
        ranks = torch.tensor(self.ranks, device=view.device)[:, None].expand(-1, view.keys.shape[1], -1)
        number = (view.counts * self.keep_ratio).round().long().clamp(min=1)
        return Selection.top_k(
            ranks.gather(2, _places(view)), number, valid=view.valid, protected=~view.vision & view.valid
        )


class Leave(CachePolicy):
    """All vision entries but ``keep_tokens`` chosen at random leave after decoding step ``step`` (0: after the prefill)."""

    name: ClassVar[str] = "leave"
    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.DIGEST})
    acts_in_decoding: ClassVar[bool] = True
    step: int
    keep_tokens: int = 0

    def after_prefill(self, view: CacheView) -> Selection | None:
        return self._left(view) if self.step == 0 else None

    def after_step(self, view: CacheView) -> Selection | None:
        start = view.index.masked_fill(~view.valid, torch.iinfo(view.index.dtype).max).amin(-1)
        made = (view.index.amax(-1) - start)[:, 0] + 1 - view.prompt
        return self._left(view) if int(made.max()) == self.step else None

    def _left(self, view: CacheView) -> Selection:
        number = int(view.vision.sum(-1).max())
        stay = view.valid & ~view.vision
        if self.keep_tokens:
            numbers = uniform(view.digest, number, seed=0, stream=9)[:, None].expand(-1, view.keys.shape[1], -1)
            last = numbers.topk(min(self.keep_tokens, number), -1).values[..., -1:]
            stay = stay | (view.vision & (numbers.gather(2, _places(view).clamp(max=number - 1)) >= last))
        return Selection.from_mask(stay)
