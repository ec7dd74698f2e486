"""FastV: after layer K, half of the image is enough."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tokcomp.one_cut import OneCut
from tokcomp.registry import PREFILL
from tokcomp.stages import LayerSpec
from tokcomp.types import PrefillView, Selection, Signal

__all__ = ["FastV"]


@PREFILL.register("fastv")
class FastV(OneCut):
    """Keeps the vision tokens that the prompt's last token attends to most.

    "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large Vision-Language Models",
    Chen et al., ECCV 2024, arXiv 2403.06764. Acts once, between the layers K-1 and K.

    The score of token j is the head mean of the attention of the last prompt row in layer K-1 (counted from 0); the k
    largest scores survive, in their order and under their original positions, and layers K and later never see the
    others. ``k = round(n * keep_ratio)``, half to even, of the vision tokens alive.

    Departures from the authors' code: it reads the first sample of a batch and applies its choice to all, here every
    sample has its own; the prompt is pruned once, as in the authors' variant with a cache.

    Attributes:
        layer: the paper's K, at least 1: tokens leave before layer K.
        keep_ratio: share of the vision tokens that is kept, the paper's 1 - R. The default gives way where
            ``keep_tokens`` is given.
        keep_tokens: number of vision tokens that is kept.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.QUERY_ATTENTION})
    queries: ClassVar[Literal["last", "text"] | None] = "last"
    paper: ClassVar[str] = "FastV, ECCV 2024, arXiv 2403.06764"

    layer: LayerSpec = Field(default=2, description="the paper's K, at least 1: tokens leave before this layer")

    def filter(self, view: PrefillView) -> Selection:
        return Selection.top_k(
            view.attention.float().mean(dim=1)[:, -1],  # (b, n)
            self.budget.resolve(view.known_counts),
            valid=view.valid if view.padded else None,
            protected=view.protected & view.valid if self.respects_protected and view.marked else None,
        )
