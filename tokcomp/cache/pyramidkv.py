"""PyramidKV: SnapKV with budgets that shrink from layer to layer."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator
from torch import Tensor

from tokcomp.cache.snapkv import window_score
from tokcomp.ops.pyramid import pyramid_budgets
from tokcomp.ops.recency import last
from tokcomp.registry import CACHE
from tokcomp.scored import ScoredPolicy
from tokcomp.types import CacheView, Signal

__all__ = ["PyramidKV"]


@CACHE.register("pyramidkv")
class PyramidKV(ScoredPolicy):
    """Keeps what the end of the prompt attends to, many entries in the first layers and few in the last ones.

    "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling", Cai et al., arXiv 2406.02069.
    Acts once, after the prefill, per KV head. Scores and window are SnapKV's. The budget of layer l of M lies on a line
    from ``2 n - n / beta`` down to ``n / beta``, where n is the budget that the fields state: it is the layers' mean.

    Departures from published code: the original truncates the line's step, so that the layers hold more than M n in all
    (up to 11 %), and a port gives up the pyramid where the last layer would get less than its window. By default the line
    is rounded to M n entries exactly, and the last layer gets at least one entry beside the window
    (``rounding="original"`` and ``"kvpress"`` do as these two). Window and samples are as in this package's ``snapkv``.

    Attributes:
        beta: how many times less than the mean the last layer gets.
        window: rows of the observation window.
        kernel: entries that are pooled together, odd; 1: no pooling.
        pooling: their average, or the largest of them.
        rounding: how the line becomes whole entries.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.RECEIVED_ATTENTION})
    paper: ClassVar[str] = "PyramidKV, arXiv 2406.02069"

    beta: float = Field(default=20, ge=1, description="how many times less than the mean the last layer gets")
    window: int = Field(default=64, ge=1, description="last tokens whose attention decides")
    kernel: int = Field(default=5, ge=1, description="entries that are pooled together, odd")
    pooling: Literal["average", "max"] = Field(default="average", description="how scores of neighbours are pooled")
    rounding: Literal["exact", "kvpress", "original"] = Field(
        default="exact",
        description="how the line becomes whole entries: with an exact total, or as published code does",
    )

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError("an even number of entries has no middle: give an odd one")
        return kernel

    def prefill_rows(self, counts: Tensor, after: Tensor) -> Tensor:
        return counts.minimum(after).clamp(min=1, max=self.window)

    def entries(self, view: CacheView) -> Tensor:
        mean, window = self.budget.resolve(view.counts), self._window(view)
        layers = pyramid_budgets(mean.flatten(), view.counts.flatten(), window.flatten(), depth=view.depth,
                                 beta=self.beta, rounding=self.rounding)  # fmt: skip
        return layers[:, view.layer].view_as(mean).clamp(min=1).minimum(view.counts)

    def score(self, view: CacheView) -> Tensor:
        return window_score(view, self._window(view), self.kernel, self.pooling)

    def stays(self, view: CacheView, entries: Tensor) -> Tensor:
        exempt, recent = self.exempt(view), last(view.valid, self._window(view).minimum(entries - 1))
        return recent if exempt is None else recent | exempt

    def _window(self, view: CacheView) -> Tensor:
        return self.prefill_rows(view.counts, view.after[:, None])  # (b, g)
