"""Control: a random choice of tokens."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from tokcomp.budget import SharedBudget
from tokcomp.ops.hashing import uniform
from tokcomp.registry import VISION
from tokcomp.stages import VisionReducer
from tokcomp.types import Selection, Signal, Site, VisionView

__all__ = ["Random"]


@VISION.register("random")
class Random(SharedBudget, VisionReducer):
    """Keeps a random choice of the image's tokens, in image order: the control that every method has to beat.

    Acts on the feature layer, before the projector. The choice depends on the image's pixels and ``seed`` only: not on
    its neighbours in a batch, the device or any generator.

    Attributes:
        keep_ratio: share of the tokens that is kept. The default gives way where ``keep_tokens`` is given.
        keep_tokens: number of tokens that is kept.
        seed: another seed, another choice.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.DIGEST})

    seed: int = Field(default=0, ge=0, description="seed of the choice")

    def sites(self, depth: int) -> tuple[Site, ...]:
        return (Site.features(),)

    def reduce(self, view: VisionView) -> Selection:
        scores = uniform(view.digest, view.n_tokens, seed=self.seed)  # (b, n)
        return Selection.top_k(scores, self.budget.resolve(view.counts), valid=view.valid)
