"""What policies that wrap another one share."""

from __future__ import annotations

from pydantic import Field, field_validator
from torch import Tensor

from tokcomp.specs import CacheSpec
from tokcomp.stages import AnySignal, CachePolicy
from tokcomp.types import CacheView

__all__ = ["Wrapper"]


class Wrapper(CachePolicy):
    """A policy that asks another one and does something more: it acts where that one acts and sees what that one sees.

    Attributes:
        base: the policy that is asked. Positions are a field of the wrapper.
    """

    base: CacheSpec = Field(
        default="snapkv", validate_default=True, description="the policy that is asked, with its fields"
    )

    @field_validator("base")
    @classmethod
    def _positions_are_ours(cls, base: CachePolicy) -> CachePolicy:
        if base.positions != "keep":
            raise ValueError(f"positions belong to the wrapper: give its base '{base.name}' positions=keep")
        return base

    def signals(self) -> frozenset[AnySignal]:
        return self.needs | self.base.signals()

    def departures(self) -> dict[str, str]:
        return self.base.departures()

    def acts_on(self, depth: int) -> range:
        return self.base.acts_on(depth)

    def prefill_rows(self, counts: Tensor, after: Tensor) -> Tensor | None:
        return self.base.prefill_rows(counts, after)

    def decodes(self) -> bool:
        return self.base.decodes()

    def packs(self) -> bool:
        return self.base.packs()

    def guided_by(self) -> str | None:
        return self.base.guided_by()

    def survey(self, view: CacheView) -> Tensor:
        return self.base.survey(view)

    def exempt(self, view: CacheView) -> Tensor | None:
        own, inner = super().exempt(view), self.base.exempt(view)
        return inner if own is None else own if inner is None else own | inner
