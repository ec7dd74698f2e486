"""PyramidKV: SnapKV with budgets that shrink from layer to layer."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from tokcomp.cache.snapkv import ObservationWindow
from tokcomp.ops.pyramid import pyramid_budgets
from tokcomp.registry import CACHE
from tokcomp.types import CacheView

__all__ = ["PyramidKV"]


@CACHE.register("pyramidkv")
class PyramidKV(ObservationWindow):
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

    paper: ClassVar[str] = "PyramidKV, arXiv 2406.02069"

    beta: float = Field(default=20, ge=1, description="how many times less than the mean the last layer gets")
    rounding: Literal["exact", "kvpress", "original"] = Field(
        default="exact",
        description="how the line becomes whole entries: with an exact total, or as published code does",
    )

    def entries(self, view: CacheView) -> Tensor:
        mean, window = self.budget.resolve(view.counts), self.rows(view)
        layers = pyramid_budgets(mean.flatten(), view.counts.flatten(), window.flatten(), depth=view.depth,
                                 beta=self.beta, rounding=self.rounding)  # fmt: skip
        return layers[:, view.layer].view_as(mean).clamp(min=1).minimum(view.counts)
