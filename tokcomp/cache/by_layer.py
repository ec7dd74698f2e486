"""By layer: one policy for some layers, another one for the others."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from tokcomp.registry import CACHE
from tokcomp.specs import CacheSpec
from tokcomp.stages import AnySignal, CachePolicy, LayerSpec, resolve_layer
from tokcomp.types import CacheView, Selection

__all__ = ["ByLayer", "Range"]


class Range(BaseModel):
    """A policy and the layer from which on it acts, until the next range begins.

    Attributes:
        first_layer: the layer.
        policy: the policy; none: these layers keep everything.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    first_layer: LayerSpec = Field(default=0, description="first layer of the range")
    policy: CacheSpec | None = Field(default=None, description="the policy of these layers; none: they keep everything")

    @field_validator("policy", mode="before")
    @classmethod
    def _none_is_none(cls, policy: object) -> object:
        return None if policy == "none" or (isinstance(policy, dict) and policy.get("name") == "none") else policy


def _all_but_the_first_quarter() -> tuple[Range, ...]:
    return Range(), Range.model_validate({"first_layer": 0.25, "policy": "snapkv"})


@CACHE.register("by_layer")
class ByLayer(CachePolicy):
    """Gives every range of layers a cache policy of its own.

    A combination of this package. Each policy works as it would alone, with its own positions and exempt entries, on the
    layers of its range (of those on which it acts at all). A policy that compares layers, such as ``vlcache``, compares those of
    its range; one whose budget falls with depth, such as ``pyramidkv``, draws its line through all layers.

    Attributes:
        ranges: policies in the order of their first layers.
        positions, respects_protected: fields of the policies, not of their combination.
    """

    ranges: tuple[Range, ...] = Field(
        default_factory=_all_but_the_first_quarter,
        min_length=1,
        description="policies with their first layers, ascending",
    )
    positions: Literal["keep"] = Field(default="keep", description="a field of the policies")
    respects_protected: Literal[True] = Field(default=True, description="a field of the policies")
    keep_text: Literal[False] = Field(default=False, description="a field of the policies")
    acts_in_decoding: ClassVar[bool] = False

    def of_layer(self, layer: int, depth: int) -> CachePolicy | None:
        starts = [
            resolve_layer(one.first_layer, depth, what="cache.by_layer.ranges.first_layer") for one in self.ranges
        ]
        inside = [one for one, start in zip(self.ranges, starts, strict=True) if start <= layer]
        policy = inside[-1].policy if inside else None
        return None if policy is None else policy.of_layer(layer, depth)

    def acts_on(self, depth: int) -> range:
        """From the first to the last layer that has a policy; see :meth:`of_layer`."""
        acting = [layer for layer in range(depth) if self.of_layer(layer, depth) is not None]
        return range(acting[0], acting[-1] + 1) if acting else range(0)

    @property
    def policies(self) -> list[CachePolicy]:
        return [one.policy for one in self.ranges if one.policy is not None]

    def departures(self) -> dict[str, str]:
        return {rule: reason for policy in self.policies for rule, reason in policy.departures().items()}

    def signals(self) -> frozenset[AnySignal]:
        return frozenset().union(*(policy.signals() for policy in self.policies))

    def decodes(self) -> bool:
        return any(policy.decodes() for policy in self.policies)

    def hides(self) -> bool:
        return any(policy.hides() for policy in self.policies)

    def packs(self) -> bool:
        return any(policy.packs() for policy in self.policies)

    def guided_by(self) -> str | None:
        return next((policy.guided_by() for policy in self.policies if policy.guided_by() is not None), None)

    def prefill_rows(self, counts: Tensor, after: Tensor) -> Tensor | None:
        raise TypeError("every layer's policy has prompt rows of its own: ask of_layer")

    def exempt(self, view: CacheView) -> Tensor | None:
        return self._own(view).exempt(view)

    def after_prefill(self, view: CacheView) -> Selection | None:
        return self._own(view).after_prefill(view)

    def after_step(self, view: CacheView) -> Selection | None:
        return self._own(view).after_step(view)

    def _own(self, view: CacheView) -> CachePolicy:
        policy = self.of_layer(view.layer, view.depth)
        if policy is None:
            raise ValueError(f"no policy acts on layer {view.layer}")
        return policy
