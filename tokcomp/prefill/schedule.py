"""A combinator: several filters, each at layers of its own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from tokcomp.errors import CompatibilityError
from tokcomp.registry import PREFILL
from tokcomp.specs import PrefillSpec
from tokcomp.stages import AnySignal, PrefillFilter
from tokcomp.types import PrefillView, Selection

__all__ = ["Schedule"]


@PREFILL.register("schedule")
class Schedule(PrefillFilter):
    """Runs several filters, one deeper in the language model than the other, each with its own layers, budget and fields.

    A step acts where its own fields say, on the vision tokens that the steps before it left: ``keep_ratio`` is a share of
    those, except where a strategy counts from the beginning. Steps may be of one kind or of several; two of them must not
    act after the same layer. The default halves the tokens three times by FastV's rule, at a quarter, half and
    three quarters of the depth.

    Attributes:
        steps: the filters, as a pipeline takes them: a name, or a name with its fields.
        positions: position ids of the survivors after every step; None: as each step says.
        respects_protected: whether key tokens of the vision stage are never dropped; None: as each step says.
        budget_per: what has a budget of its own; None: as each step says.
    """

    # None leaves it to the steps, whose own fields the runner reads.
    positions: Literal["keep", "renumber"] | None = Field(  # type: ignore[assignment]
        default=None, description="position ids of the survivors after every step; none: as each step says"
    )
    respects_protected: bool | None = Field(  # type: ignore[assignment]
        default=None, description="never drop the vision stage's key tokens; none: as each step says"
    )
    budget_per: Literal["prompt", "image", "row"] | None = Field(  # type: ignore[assignment]
        default=None, description="what has a budget of its own; none: as each step says"
    )
    steps: tuple[PrefillSpec, ...] = Field(
        default=(
            {"name": "fastv", "layer": 0.25},
            {"name": "fastv", "layer": 0.5},
            {"name": "fastv", "layer": 0.75},
        ),
        validate_default=True,
        min_length=1,
        description="the filters: names, or names with their fields",
    )

    @field_validator("steps")
    @classmethod
    def _all_alike(cls, steps: tuple[PrefillFilter, ...], info: ValidationInfo) -> tuple[PrefillFilter, ...]:
        names = ("positions", "respects_protected", "budget_per")
        shared = {name: info.data[name] for name in names if info.data.get(name) is not None}
        return tuple(step.model_copy(update=shared) for step in steps) if shared else steps

    def departures(self) -> dict[str, str]:
        return {rule: reason for step in self.steps for rule, reason in step.departures().items()}

    def signals(self) -> frozenset[AnySignal]:
        return frozenset[AnySignal]().union(*(step.signals() for step in self.steps))

    def guided_by(self) -> str | None:
        for number, step in enumerate(self.steps):
            field = step.guided_by()
            if field is not None:
                return f"prefill.schedule.steps[{number}]: {field}"
        return None

    def acts_after(self, depth: int) -> tuple[int, ...]:
        return tuple(sorted(self._acting(depth)))

    def of_layer(self, layer: int, depth: int) -> PrefillFilter:
        return self._acting(depth)[layer].of_layer(layer, depth)

    def _acting(self, depth: int) -> dict[int, PrefillFilter]:
        """The step that acts after each layer."""
        acting: dict[int, PrefillFilter] = {}
        for number, step in enumerate(self.steps):
            for layer in step.acts_after(depth):
                if layer in acting:
                    raise CompatibilityError(
                        f"prefill.schedule.steps[{number}] ('{step.name}') acts after layer {layer} of this model's "
                        f"{depth}, where '{acting[layer].name}' acts already: give it another layer"
                    )
                acting[layer] = step
        return acting

    def filter(self, view: PrefillView) -> Selection:
        return self.of_layer(view.layer, view.depth).filter(view)
