"""FasterVLM: the CLS token's attention says which patches matter."""

from __future__ import annotations

from typing import ClassVar, Literal

from tokcomp.budget import SharedBudget
from tokcomp.registry import VISION
from tokcomp.stages import VisionReducer
from tokcomp.types import Selection, Signal, Site, VisionView

__all__ = ["FasterVLM"]


@VISION.register("fastervlm")
class FasterVLM(SharedBudget, VisionReducer):
    """Keeps the patches that the vision tower's CLS token attends to most, in image order.

    Zhang et al., "[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster", 2024,
    arXiv 2412.01818 (first version). Acts on the feature layer, before the projector; nothing is merged.

    The score of a patch is the mean over heads of the CLS row of the feature layer's attention, ``cls_attention``
    ``[b, h, n]``; the k largest survive.

    Departure from the authors' code: it projects all tokens and masks the result, here the projector sees the survivors
    only, which is the same because it works token by token.

    Attributes:
        keep_ratio: share of the tokens that is kept, 1 minus the paper's reduction ratio. The default gives way where
            ``keep_tokens`` is given.
        keep_tokens: number of tokens that is kept, the paper's T.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.CLS_ATTENTION})
    without_cls: ClassVar[Literal["received", "refuse"]] = "received"
    paper: ClassVar[str] = "FasterVLM, 2024, arXiv 2412.01818 v1"

    def sites(self, depth: int) -> tuple[Site, ...]:
        return (Site.features(),)

    def reduce(self, view: VisionView) -> Selection:
        scores = view.cls_attention.mean(dim=1)  # (b, n)
        return Selection.top_k(
            scores, self.budget.resolve(view.known_counts), valid=view.valid if view.padded else None
        )
