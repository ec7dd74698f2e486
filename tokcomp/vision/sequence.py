"""A combinator: several reducers, one after the other."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import ClassVar, Self

from pydantic import Field, model_validator

from tokcomp.registry import VISION
from tokcomp.specs import VisionSpec
from tokcomp.stages import AnySignal, VisionReducer
from tokcomp.types import Selection, Site, VisionView

__all__ = ["Sequence"]


@VISION.register("sequence")
class Sequence(VisionReducer):
    """Runs several reducers, each on the tokens that those before it in the flow left.

    A step acts where it would act alone: one inside the tower before one on the features, that before one behind the projector.
    Steps at the same place take turns in the order of the list. A step's ``keep_ratio`` is a share of the tokens that it
    finds, and what it reads of a token that was merged is what was seen of the token at whose place it stands.
    ``positions`` is this strategy's own; those of its steps have no effect. The default keeps the half that FasterVLM
    chooses, and half of it for diversity.

    Attributes:
        steps: the reducers, as a pipeline takes them: a name, or a name with its fields.
    """

    protects: ClassVar[bool] = True  # a step may

    steps: tuple[VisionSpec, ...] = Field(
        default=({"name": "fastervlm", "keep_ratio": 0.5}, {"name": "divprune", "keep_ratio": 0.5}),
        validate_default=True,
        min_length=1,
        description="the reducers: names, or names with their fields",
    )

    @model_validator(mode="after")
    def _rows(self) -> Self:
        if any(step.scope() != "row" for step in self.steps):
            raise ValueError(
                "a step is 'joint', which a sequence cannot hold: put the sequence into a joint strategy instead"
            )
        return self

    def departures(self) -> dict[str, str]:
        return {rule: reason for step in self.steps for rule, reason in step.departures().items()}

    def signals(self) -> frozenset[AnySignal]:
        return frozenset[AnySignal]().union(*(step.signals() for step in self.steps))

    def refuses_without_cls(self) -> bool:
        return any(step.refuses_without_cls() for step in self.steps)

    def sites(self, depth: int) -> tuple[Site, ...]:
        return tuple(self._plan(depth))

    def looks_at(self, depth: int) -> tuple[int | None, ...]:
        return tuple(dict.fromkeys(block for step in self.steps for block in step.looks_at(depth)))

    def weighs_attention(self) -> bool:
        return any(step.weighs_attention() for step in self.steps)

    def reduce(self, view: VisionView) -> Selection:
        step, site = self._plan(view.depth)[view.site]
        return step.reduce(replace(view, site=site))

    def _plan(self, depth: int) -> dict[Site, tuple[VisionReducer, Site]]:
        """Which step acts at each site, and what it calls the site itself."""
        turns: Counter[Site] = Counter()
        plan: dict[Site, tuple[VisionReducer, Site]] = {}
        for step in self.steps:
            for site in step.sites(depth):
                plan[replace(site, turn=turns[site.place])] = step, site
                turns[site.place] += 1
        return plan
