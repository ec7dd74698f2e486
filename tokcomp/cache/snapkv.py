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

__all__ = ["ObservationWindow", "SnapKV"]


class ObservationWindow(ScoredPolicy):
    """A policy whose scores are what the last rows of the prompt, the observation window, attend to; the window stays.

    Attributes:
        window: rows of the observation window (w).
        kernel: entries that are pooled together, odd; 1: no pooling.
        pooling: their average, or the largest of them.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.RECEIVED_ATTENTION})

    window: int = Field(default=64, ge=1, description="last tokens whose attention decides")
    kernel: int = Field(default=5, ge=1, description="entries that are pooled together, odd")
    pooling: Literal["average", "max"] = Field(default="average", description="how scores of neighbours are pooled")

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError("an even number of entries has no middle: give an odd one")
        return kernel

    def prefill_rows(self, counts: Tensor, after: Tensor) -> Tensor:
        return counts.minimum(after).clamp(min=1, max=self.window)

    def rows(self, view: CacheView) -> Tensor:
        """Rows of each sample's window ``[b, g]``."""
        return self.prefill_rows(view.counts, view.after[:, None])

    def received(self, view: CacheView) -> Tensor:
        """What each entry got from the window ``[b, g, l]``."""
        return view.received

    def score(self, view: CacheView) -> Tensor:
        before = view.valid & ~last(view.valid, self.rows(view))
        return smooth(self.received(view), before, kernel=self.kernel, pooling=self.pooling)

    def stays(self, view: CacheView, entries: Tensor) -> Tensor:
        exempt, recent = self.exempt(view), last(view.valid, self.rows(view).minimum(entries - 1))
        return recent if exempt is None else recent | exempt


@CACHE.register("snapkv")
class SnapKV(ObservationWindow):
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

    paper: ClassVar[str] = "SnapKV, NeurIPS 2024, arXiv 2404.14469"

    heads: Literal["own", "shared"] = Field(default="own", description="a choice per KV head, or one for all")

    def received(self, view: CacheView) -> Tensor:
        if self.heads == "own":
            return view.received
        return view.received.sum(dim=1, keepdim=True).expand_as(view.received)
