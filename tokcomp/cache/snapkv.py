"""SnapKV: what the end of the prompt attends to."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator
from torch import Tensor

from tokcomp.ops.recency import last
from tokcomp.ops.smoothing import smooth
from tokcomp.registry import CACHE
from tokcomp.scored import ScoredPolicy
from tokcomp.types import CacheView, Signal

__all__ = ["SnapKV"]


@CACHE.register("snapkv")
class SnapKV(ScoredPolicy):
    """Keeps the entries that the last tokens of the prompt, the observation window, attend to, and the window itself.

    "SnapKV: LLM Knows What You are Looking for Before Generation", Li et al., NeurIPS 2024, arXiv 2404.14469. Acts once,
    after the prefill, per KV head; the cache then grows by one entry per step.

    The window's w rows attend causally over the whole prompt (softmax over all entries, its own included). What an entry
    before the window receives is summed over these rows and over the query heads of its group, and pooled along the
    sequence with its neighbours. The highest pooled scores and the window stay, ``[b, g, n]``, n in all.

    Departures from the authors' code, which keeps entries per query head and knows one sample: one set per KV head;
    every sample has its own window; and since vision tokens would be poor observers, the window reaches back to the last
    image at most. It never fills the budget: at most n - 1 entries of it must stay.

    Attributes:
        window: rows of the observation window (w).
        kernel: entries that are pooled together, odd; 1: no pooling.
        pooling: their average, or the largest of them.
        heads: whether every KV head has a choice of its own, or one choice, by the sums over all heads, is shared.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.RECEIVED_ATTENTION})
    paper: ClassVar[str] = "SnapKV, NeurIPS 2024, arXiv 2404.14469"

    window: int = Field(default=64, ge=1, description="last tokens whose attention decides")
    kernel: int = Field(default=5, ge=1, description="entries that are pooled together, odd")
    pooling: Literal["average", "max"] = Field(default="average", description="how scores of neighbours are pooled")

    heads: Literal["own", "shared"] = Field(default="own", description="a choice per KV head, or one for all")

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError("an even number of entries has no middle: give an odd one")
        return kernel

    def prefill_rows(self, counts: Tensor, after: Tensor) -> Tensor:
        return counts.minimum(after).clamp(min=1, max=self.window)

    def score(self, view: CacheView) -> Tensor:
        window = self.prefill_rows(view.counts, view.after[:, None])
        return window_score(view, window, self.kernel, self.pooling, shared=self.heads == "shared")

    def stays(self, view: CacheView, entries: Tensor) -> Tensor:
        exempt, window = self.exempt(view), self.prefill_rows(view.counts, view.after[:, None])
        recent = last(view.valid, window.minimum(entries - 1))
        return recent if exempt is None else recent | exempt


def window_score(view: CacheView, window: Tensor, kernel: int, pooling: Literal["average", "max"], *,
                 shared: bool = False) -> Tensor:  # fmt: skip
    """What the entries before the last ``window`` ``[b, g]`` received from it, pooled ``[b, g, l]``; 0 for the window.

    ``shared``: summed over all heads.
    """
    before = view.valid & ~last(view.valid, window)
    received = view.received.sum(dim=1, keepdim=True).expand_as(before) if shared else view.received
    return smooth(received, before, kernel=kernel, pooling=pooling)
