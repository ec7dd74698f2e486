"""Control: a random choice of the cache's entries."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from tokcomp.budget import Budgeted
from tokcomp.ops.hashing import uniform
from tokcomp.ops.recency import last
from tokcomp.registry import CACHE
from tokcomp.stages import CachePolicy
from tokcomp.types import CacheView, Selection, Signal

__all__ = ["Random"]

_STREAM = 2  # layer i draws stream 2 + i; the earlier stages draw the streams below


@CACHE.register("random")
class Random(Budgeted, CachePolicy):
    """Keeps a random choice of the entries, per KV head, in their order: the control that every policy has to beat.

    Acts once, after the prefill. An entry's number depends on the image, the prompt, ``seed``, layer, head and the
    entry's place in the uncompressed sequence after the first entry: not on padding, neighbours in a batch or the
    device. With ``keep_text`` the choice is among the vision entries, the fair control for policies that leave text
    alone; text counts inside the budget.

    Attributes:
        keep_ratio: share of the entries that stays. The default gives way where ``keep_tokens`` is given.
        keep_tokens: number of entries that stays.
        recent_tokens: last entries that stay in any case, inside the budget.
        seed: another seed, another choice.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.DIGEST})

    keep_ratio: float | None = Field(default=0.5, gt=0, le=1, description="share of the entries that stays")
    keep_tokens: int | None = Field(default=None, ge=1, description="number of entries that stays")
    recent_tokens: int = Field(default=0, ge=0, description="last entries that stay in any case")
    seed: int = Field(default=0, ge=0, description="seed of the choice")

    def after_prefill(self, view: CacheView) -> Selection:
        heads = view.keys.shape[1]
        # Left padding moves all of a sample's positions, so they are counted from its first entry.
        start = view.index.masked_fill(~view.valid, torch.iinfo(view.index.dtype).max).amin(dim=-1, keepdim=True)
        places = (view.index - start).clamp(min=0)  # (b, g, l)
        head = torch.arange(heads, device=view.device)[:, None]
        n = (int(places.max()) + 1) * heads
        numbers = uniform(view.digest, n, seed=self.seed, stream=_STREAM + view.layer)  # (b, n)
        scores = numbers.gather(1, (places * heads + head).flatten(1)).view(places.shape)
        stay = last(view.valid, self.recent_tokens)
        exempt = self.exempt(view)
        stay = stay if exempt is None else stay | exempt
        return Selection.top_k(scores, self.budget.resolve(view.counts), valid=view.valid, protected=stay)
