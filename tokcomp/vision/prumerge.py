"""PruMerge: patches that the CLS token singles out take up their neighbours."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from tokcomp.budget import Budgeted
from tokcomp.ops.neighbours import take_up_neighbours
from tokcomp.ops.outliers import outlier_counts
from tokcomp.registry import VISION
from tokcomp.stages import VisionReducer
from tokcomp.types import Selection, Signal, Site, VisionView

__all__ = ["PruMerge"]


@VISION.register("prumerge")
class PruMerge(Budgeted, VisionReducer):
    """Keeps the patches whose CLS attention is an outlier; they take up similar ones, and one token gathers all others.

    Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", ICCV 2025, arXiv
    2403.15388. Acts on the feature layer, before the projector; how many tokens are left depends on the image.

    The attention ``a`` ``[b, n]`` is the CLS row of the tower's *last* block with heads not split (one softmax over the full
    width). Selected are the tokens above ``Q3 + 1.5 (Q3 - Q1)``, by descending attention. A selected token c becomes
    ``x_c + sum_j a_j x_j`` over its 32 most similar neighbours (cosine of the last block's keys), selected or not; one more
    token at the end is ``sum_j a_j x_j`` over all tokens that were not selected. As in the code the weights are not
    normalised. With a budget of K the K - 1 tokens of highest attention are selected.

    Departures from the authors' code: the outliers are counted for each image by itself, where the code takes its quartiles
    over the batch, so that an image depends on its neighbours there; that rule lives on as ``over_batch`` of
    :func:`tokcomp.ops.outliers.outlier_counts`. An image of fewer than 33 patches has all others as neighbours, where the
    code fails, and an image of one token, or a budget that covers all tokens, is left as it is.
    Without CLS token the attention received, heads not split either, takes its place.

    Attributes:
        keep_ratio: share of the tokens that is kept, the gathering token included; not given: by outliers, as published.
        keep_tokens: number of tokens that is kept.
        neighbours: neighbours that a selected token takes up.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.UNSPLIT_ATTENTION, Signal.UNSPLIT_KEYS})
    without_cls: ClassVar[Literal["received", "refuse"]] = "received"
    paper: ClassVar[str] = (
        "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models, ICCV 2025, arXiv 2403.15388"
    )

    keep_ratio: float | None = Field(
        default=None, gt=0, le=1, description="share of the tokens that is kept; not given: by outliers"
    )
    neighbours: int = Field(default=32, ge=0, description="neighbours that a selected token takes up")

    def sites(self, depth: int) -> tuple[Site, ...]:
        return (Site.features(),)

    def looks_at(self, depth: int) -> tuple[int | None, ...]:
        return (depth - 1,)

    def reduce(self, view: VisionView) -> Selection:
        last, counts = view.at(view.depth - 1), view.counts
        scores = last.unsplit_attention
        if self.keep_ratio is None and self.keep_tokens is None:
            selected = outlier_counts(scores, view.valid).where(counts > 1, counts)
        else:
            budget = self.budget.resolve(counts)
            selected = (budget - 1).where(budget < counts, counts)
        # Stable: of equal attention the lower index wins, on every device, and padding comes last.
        order = scores.masked_fill(~view.valid, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
        place = torch.arange(view.n_tokens, device=view.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, place)
        rank = rank.masked_fill(rank >= selected[:, None], -1).where((selected < counts)[:, None], place)
        return take_up_neighbours(rank, scores, last.unsplit_keys, view.valid, neighbours=self.neighbours)
