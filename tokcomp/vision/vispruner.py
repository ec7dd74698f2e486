"""VisPruner: tokens that the CLS token attends to, and tokens that differ from each other."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from tokcomp.budget import SharedBudget
from tokcomp.ops.diversity import drop_duplicates
from tokcomp.registry import VISION
from tokcomp.stages import VisionReducer
from tokcomp.types import Selection, Signal, Site, VisionView

__all__ = ["VisPruner"]


@VISION.register("vispruner")
class VisPruner(SharedBudget, VisionReducer):
    """Keeps the patches that the CLS token attends to most and, of the others, those that resemble each other least.

    Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs", ICCV 2025, arXiv
    2412.01818. Acts on the feature layer, before the projector; nothing is merged, survivors stand in image order.

    Of a budget of T tokens ``trunc(T important_ratio)`` are important: the highest ``cls_attention`` ``[b, h, n]``, mean over
    heads. All others, by descending attention, form a list that is thinned out 8 at a time: of its tokens at even places those
    leave whose most similar token at an odd place (cosine of the features) is most similar
    (:func:`tokcomp.ops.diversity.drop_duplicates`), until T tokens are left in all.

    Departure from the authors' code: a list of odd length has its last token among those at even places; the code fails there.
    Without CLS token the attention received takes its place.

    Attributes:
        keep_ratio: share of the tokens that is kept. The default gives way where ``keep_tokens`` is given.
        keep_tokens: number of tokens that is kept, the paper's T.
        important_ratio: share of the kept tokens that is chosen by attention, the paper's r.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.CLS_ATTENTION})
    without_cls: ClassVar[Literal["received", "refuse"]] = "received"
    paper: ClassVar[str] = (
        "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs, ICCV 2025, arXiv 2412.01818"
    )

    important_ratio: float = Field(
        default=0.5, ge=0, le=1, description="share of the kept tokens that is chosen by attention"
    )

    def departures(self) -> dict[str, str]:
        return {"cost": "duplicates leave round by round: each round depends on those before it, as published"}

    def sites(self, depth: int) -> tuple[Site, ...]:
        return (Site.features(),)

    def reduce(self, view: VisionView) -> Selection:
        counts, n = view.counts, view.n_tokens
        budget = self.budget.resolve(counts)
        important = (budget.double() * self.important_ratio).long()
        scores = view.cls_attention.mean(dim=1).masked_fill(~view.valid, -torch.inf)
        # Stable: of equal attention the lower index wins, on every device, and padding comes last.
        order = scores.sort(dim=1, descending=True, stable=True).indices
        place = torch.arange(n, device=view.device).expand_as(order)
        chosen = torch.zeros_like(view.valid).scatter(1, order, place < important[:, None])
        longest = self.budget.resolve(n)
        most = longest - int(longest * self.important_ratio)
        if most:
            items = order.gather(1, (place + important[:, None]).clamp(max=n - 1))[:, : n - (longest - most)]
            left = drop_duplicates(view.tokens, items, counts - important, budget - important, most=most)
            spare = torch.nn.functional.pad(chosen, (0, 1))
            chosen = spare.scatter(1, left.where(left >= 0, n), True)[:, :n]
        return Selection.from_mask(chosen & view.valid, count=None if view.padded else longest)
