"""Control: a random choice of tokens."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

from tokcomp.budget import Budget, one_budget
from tokcomp.ops.hashing import uniform
from tokcomp.registry import VISION
from tokcomp.stages import VisionReducer
from tokcomp.types import Selection, Signal, Site, VisionView

__all__ = ["Random"]


@VISION.register("random")
class Random(VisionReducer):
    """Keeps a random choice of the image's tokens, in image order: the control that every method has to beat.

    Acts on the feature layer, before the projector. The choice depends on the image's pixels and ``seed`` only: not on
    its neighbours in a batch, the device or any generator.

    Attributes:
        keep_ratio: share of the tokens that is kept. The default gives way where ``keep_tokens`` is given.
        keep_tokens: number of tokens that is kept.
        seed: another seed, another choice.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.DIGEST})

    keep_ratio: float | None = Field(default=0.25, gt=0, le=1, description="share of the tokens that is kept")
    keep_tokens: int | None = Field(default=None, ge=1, description="number of tokens that is kept")
    seed: int = Field(default=0, ge=0, description="seed of the choice")

    @model_validator(mode="before")
    @classmethod
    def _one_budget(cls, fields: Any) -> Any:
        return one_budget(fields, keep_ratio=0.25)

    def sites(self, depth: int) -> tuple[Site, ...]:
        return (Site.features(),)

    def reduce(self, view: VisionView) -> Selection:
        budget = Budget(keep_ratio=self.keep_ratio, keep_tokens=self.keep_tokens)
        scores = uniform(view.digest, view.n_tokens, seed=self.seed)  # (b, n)
        return Selection.top_k(scores, budget.resolve(view.counts), valid=view.valid)
