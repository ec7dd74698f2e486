"""DivPrune: tokens that are as different from each other as can be."""

from __future__ import annotations

from typing import ClassVar

import torch

from tokcomp.budget import SharedBudget
from tokcomp.ops.diversity import farthest_points
from tokcomp.registry import VISION
from tokcomp.stages import VisionReducer
from tokcomp.types import Selection, Site, VisionView

__all__ = ["DivPrune"]


@VISION.register("divprune")
class DivPrune(SharedBudget, VisionReducer):
    """Keeps the tokens whose smallest distance from each other is as large as can be, chosen one by one.

    Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025, arXiv 2503.02175.
    Acts after the projector, on the tokens as the language model gets them; no attention and no text is looked at.

    The distance is 1 minus the cosine. The first token is the one whose nearest neighbour is farthest, then always the one whose
    nearest chosen token is farthest (:func:`tokcomp.ops.diversity.farthest_points`). Survivors stand in image order.

    Departures from the authors' code: every image of a batch chooses for itself, where the code applies the first one's choice
    to all; tokens that are chosen are barred, where the code relies on their distance of 0; distances are float32, where half
    precision makes ties.

    Attributes:
        keep_ratio: share of the tokens that is kept, the paper's rho. The default gives way where ``keep_tokens`` is given.
        keep_tokens: number of tokens that is kept.
    """

    paper: ClassVar[str] = (
        "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models, CVPR 2025, arXiv 2503.02175"
    )

    def departures(self) -> dict[str, str]:
        return {"cost": "one operation per kept token: each choice depends on those before it, as published"}

    def sites(self, depth: int) -> tuple[Site, ...]:
        return (Site.projected(),)

    def reduce(self, view: VisionView) -> Selection:
        steps = self.budget.resolve(view.n_tokens)
        order = farthest_points(view.tokens, steps, view.valid)
        wanted = torch.arange(steps, device=view.device) < self.budget.resolve(view.counts)[:, None]
        chosen = torch.zeros_like(view.valid).scatter(1, order, wanted)
        return Selection.from_mask(chosen, count=None if view.padded else steps)
