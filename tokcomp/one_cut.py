"""Prefill filters that cut once, before one layer."""

from __future__ import annotations

from pydantic import Field, field_validator

from tokcomp.budget import Budgeted
from tokcomp.errors import CompatibilityError
from tokcomp.stages import LayerSpec, PrefillFilter, resolve_layer

__all__ = ["OneCut"]

_BETWEEN = "tokens leave between two layers, so the layer is at least 1"


class OneCut(Budgeted, PrefillFilter):
    """A filter that acts once, between layer ``layer`` and the one before it.

    Attributes:
        layer: tokens leave before this layer, at least 1.
        keep_ratio: share of the vision tokens that is kept. The default gives way where ``keep_tokens`` is given.
        keep_tokens: number of vision tokens that is kept.
    """

    layer: LayerSpec = Field(default=2, description="tokens leave before this layer, at least 1")
    keep_ratio: float | None = Field(default=0.5, gt=0, le=1, description="share of the vision tokens that is kept")

    @field_validator("layer")
    @classmethod
    def _after_the_first(cls, layer: LayerSpec) -> LayerSpec:
        if layer == 0:
            raise ValueError(f"layer=0: {_BETWEEN}")
        return layer

    def acts_after(self, depth: int) -> tuple[int, ...]:
        layer = resolve_layer(self.layer, depth, what=f"prefill.{self.name}.layer")
        if layer == 0:
            raise CompatibilityError(
                f"prefill.{self.name}.layer={self.layer} is the first of this model's {depth} layers: {_BETWEEN}"
            )
        return (layer - 1,)
