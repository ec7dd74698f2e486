"""HiRED: a budget for large images in tiles, shared by what the first block attends to."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from tokcomp.budget import Budgeted
from tokcomp.ops.partitions import partition_budgets
from tokcomp.registry import VISION
from tokcomp.stages import VisionReducer
from tokcomp.types import Selection, Signal, Site, VisionView

__all__ = ["HiRED"]


@VISION.register("hired")
class HiRED(Budgeted, VisionReducer):
    """Shares a budget between the tiles of a large image by early CLS attention and spends it in each by late CLS attention.

    Arif et al., "HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language Models",
    AAAI 2025, arXiv 2408.10945. Acts on the feature layer, before the projector; nothing is merged, survivors stand in image
    order.

    An image of P rows (a thumbnail and P - 1 tiles) of N tokens keeps ``trunc(P N rate)`` of them. The thumbnail gets the share
    ``alpha`` of these. The tiles share the rest in proportion to how many of the thumbnail's ``trunc(N (1 - alpha))`` tokens of
    highest CLS attention in the *first* block, summed over heads, lie in their piece of it
    (:func:`tokcomp.ops.partitions.partition_budgets`). Each row keeps its tokens of highest CLS attention at the feature layer.
    An image of one row keeps ``trunc(N rate)``, which is FasterVLM's rule with another rounding.

    Departures from the authors' code: every row keeps at least one token; the code's pieces of the thumbnail are equal stretches
    of the flat raster, kept here, whatever the tiles' arrangement, and where N is no multiple of P - 1 their ends are rounded
    down; several images of a batch are each their own.

    Attributes:
        keep_ratio: share of all the image's tokens that is kept, truncated, the paper's rate.
        keep_tokens: number of tokens that is kept for each row on average.
        alpha: share of the budget that the thumbnail gets.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.CLS_ATTENTION})
    paper: ClassVar[str] = (
        "HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language Models, AAAI 2025, "
        "arXiv 2408.10945"
    )

    keep_ratio: float | None = Field(
        default=0.2, gt=0, le=1, description="share of all the image's tokens that is kept"
    )
    keep_tokens: int | None = Field(
        default=None, ge=1, description="number of tokens that is kept for each row on average"
    )
    alpha: float = Field(default=0.5, gt=0, lt=1, description="share of the budget that the thumbnail gets")

    def departures(self) -> dict[str, str]:
        return {"budget": "one budget for all rows of an image, truncated as published"}

    def sites(self, depth: int) -> tuple[Site, ...]:
        return (Site.features(),)

    def looks_at(self, depth: int) -> tuple[int | None, ...]:
        return (0, None)

    def reduce(self, view: VisionView) -> Selection:
        budgets = partition_budgets(
            view.at(0).cls_attention.sum(dim=1),
            view.origin,
            view.valid,
            view.owners or tuple(range(view.batch_size)),
            keep=self.keep_tokens or self.keep_ratio or 1.0,
            alpha=self.alpha,
            patches=view.grid[0] * view.grid[1],
        )
        return Selection.top_k(view.cls_attention.sum(dim=1), budgets, valid=view.valid)
