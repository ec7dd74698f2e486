"""PruMerge+: PruMerge with patches at regular distances beside the outliers."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokcomp.budget import Budgeted
from tokcomp.ops.neighbours import take_up_neighbours
from tokcomp.ops.outliers import outlier_counts, outlier_share
from tokcomp.registry import VISION
from tokcomp.stages import VisionReducer
from tokcomp.types import Selection, Signal, Site, VisionView

__all__ = ["PruMergePlus"]


@VISION.register("prumerge_plus")
class PruMergePlus(Budgeted, VisionReducer):
    """Keeps the patches whose CLS attention is an outlier and others at regular distances; they take up similar ones.

    Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", ICCV 2025, arXiv
    2403.15388; what the authors' code runs. Acts on the feature layer, before the projector; how many tokens are left depends
    on the image, of 576 patches about a quarter.

    As ``prumerge``, with more tokens selected: where k of N tokens are outliers, those at the places 0, g, 2 g, ... below
    N - 1 with ``g = floor(floor(N / k) / 3)`` follow them, ascending, as far as they are not outliers themselves. With a budget
    of K, at most K - 1 outliers are selected and the tokens at regular distances, ``max(1, N // (K - 1))``, fill up to K - 1, as
    the published ports do.

    Departures from the authors' code: the outliers are counted for each image by itself, where the code takes its quartiles
    over the batch, so that an image depends on its neighbours there; that rule lives on as ``over_batch`` of
    :func:`tokcomp.ops.outliers.outlier_counts`. An image of fewer than 33 patches has all others as neighbours, and a step g of
    0 (more than a third of outliers) counts as 1, where the code fails; an image of one token, or a budget that covers all
    tokens, is left as it is.

    Without CLS token the attention received, heads not split either, takes its place.

    Attributes:
        keep_ratio: share of the tokens that is kept, the gathering token included; not given: by outliers, as published.
        keep_tokens: number of tokens that is kept.
        neighbours: neighbours that a selected token takes up.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.UNSPLIT_ATTENTION, Signal.UNSPLIT_KEYS})
    without_cls: ClassVar[Literal["received", "refuse"]] = "received"
    paper: ClassVar[str] = (
        "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models (PruMerge+), ICCV 2025, "
        "arXiv 2403.15388"
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
        last = view.at(view.depth - 1)
        rank = self._ranks(last.unsplit_attention, view.valid)
        return take_up_neighbours(
            rank, last.unsplit_attention, last.unsplit_keys, view.valid, neighbours=self.neighbours
        )

    def _ranks(self, scores: Tensor, valid: Tensor) -> Tensor:
        """The place of each selected token in the result ``[b, n]``, -1 for the others."""
        counts = valid.sum(dim=1, keepdim=True)
        outliers = outlier_counts(scores, valid)[:, None]
        index = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
        if self.keep_ratio is None and self.keep_tokens is None:
            share = outlier_share(scores, valid)[:, None].clamp(min=1e-9)  # of none, all distances are too large
            step, end = ((1 / share).floor() // 3).long().clamp(min=1), counts - 1
            most = (counts - 1).where(counts > 1, counts)
        else:
            budget = self.budget.resolve(counts)
            most = (budget - 1).where(budget < counts, counts)
            step, end = counts // most.clamp(min=1), counts
        # Stable: of equal attention the lower index wins, on every device, and padding comes last.
        order = scores.masked_fill(~valid, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
        rank = torch.empty_like(order).scatter_(1, order, index)
        outliers = torch.minimum(outliers, most)
        first = rank < outliers
        regular = (index % step.clamp(min=1) == 0) & (index < end) & valid & ~first
        rank = rank.where(first, outliers + regular.cumsum(dim=1) - 1).where(first | regular, -1)
        return rank.masked_fill(rank >= most, -1).where(most < counts, index.where(valid, -1))
