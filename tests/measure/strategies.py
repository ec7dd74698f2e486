"""Strategies whose counts are plain to see: what the dry run is asked about in the tests."""

from __future__ import annotations

from typing import ClassVar

import torch

from tokcomp.selection import Selection
from tokcomp.stages import CachePolicy, PrefillFilter, VisionReducer
from tokcomp.types import CacheView, PrefillView, Signal, Site, VisionView


class Halves(VisionReducer):
    """Keeps every other token after block 3."""

    def sites(self, depth: int) -> tuple[Site, ...]:
        return (Site.block(3),)

    def reduce(self, view: VisionView) -> Selection:
        return Selection(keep=torch.arange(0, view.n_tokens, 2).expand(view.batch_size, -1))


class Fewer(PrefillFilter):
    """Keeps 100 tokens after layer 4 and 10 after layer 7."""

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.QUERY_ATTENTION})
    queries: ClassVar = "text"

    def acts_after(self, depth: int) -> tuple[int, ...]:
        return 4, 7

    def filter(self, view: PrefillView) -> Selection:
        return Selection.top_k(view.attention.mean((1, 2)), 100 if view.layer == 4 else 10)


class Salient(PrefillFilter):
    """Keeps what gets more attention than most: as many tokens as the content has."""

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.QUERY_ATTENTION})
    queries: ClassVar = "last"

    def acts_after(self, depth: int) -> tuple[int, ...]:
        return 2, 6

    def filter(self, view: PrefillView) -> Selection:
        seen = view.attention.mean((1, 2))
        return Selection.from_mask(seen >= 1.5 * seen.mean())


class Window(CachePolicy):
    """The last 30 entries, in layers 1 and later, counted by a table that the policy keeps in its memory."""

    acts_in_decoding: ClassVar[bool] = True

    def acts_on(self, depth: int) -> range:
        return range(1, depth)

    def after_prefill(self, view: CacheView) -> Selection:
        view.memory["age"] = view.index.float()
        return self._last(view)

    def after_step(self, view: CacheView) -> Selection:
        # A new entry's place in the memory is zero; those that were there keep what was written after the prefill.
        assert (view.memory["age"][..., -1] == 0).all()
        assert (view.index[..., 1:] > view.index[..., :-1]).all()
        return self._last(view)

    def _last(self, view: CacheView) -> Selection:
        index = torch.arange(view.n_entries)[-30:]
        return Selection(keep=index.expand(1, -1), ragged=False, ascending=True)


class Loud(CachePolicy):
    """Keeps the entries that received more attention than the mean: as many as the content has."""

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.RECEIVED_ATTENTION})

    def after_prefill(self, view: CacheView) -> Selection:
        return Selection.from_mask(view.received >= view.received.mean(-1, keepdim=True))
