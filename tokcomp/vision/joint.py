"""A combinator: one budget for several images, tiles or frames."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tokcomp.registry import VISION
from tokcomp.specs import VisionSpec
from tokcomp.stages import AnySignal, VisionReducer
from tokcomp.types import Selection, Site, VisionView

__all__ = ["Joint"]


@VISION.register("joint")
class Joint(VisionReducer):
    """Lets a reducer choose among all tokens of a video, of a large image's tiles, or of a prompt's images together.

    Alone, a reducer decides for every frame, tile and image by itself, so that each keeps its share. Here they are laid end
    to end and the reducer sees one long image: a budget is one for all, and a frame that has nothing to say may lose all its
    tokens. What compares tokens (attention) is taken as the tower gives it, row by row. Reducers that merge tokens or put
    the CLS token among them are refused. ``positions`` is this strategy's own.

    Attributes:
        strategy: the reducer, as a pipeline takes it: a name, or a name with its fields.
        over: what shares a budget: ``image`` all frames of a video and all tiles of an image, ``prompt`` all images of a
            prompt that are encoded together (images and videos apart).
    """

    strategy: VisionSpec = Field(
        default={"name": "fastervlm"},
        validate_default=True,
        description="the reducer: a name, or a name with its fields",
    )
    over: Literal["image", "prompt"] = Field(
        default="image",
        description="what shares a budget: the frames or tiles of one image or video, or a prompt's images",
    )

    @model_validator(mode="after")
    def _once(self) -> Self:
        if self.strategy.scope() != "row":
            raise ValueError("the strategy shares a budget already: name the reducer itself, with budget_per=row")
        return self

    def scope(self) -> Literal["row", "image", "prompt"]:
        return self.over

    def departures(self) -> dict[str, str]:
        return self.strategy.departures()

    def signals(self) -> frozenset[AnySignal]:
        return self.strategy.signals()

    def refuses_without_cls(self) -> bool:
        return self.strategy.refuses_without_cls()

    def sites(self, depth: int) -> tuple[Site, ...]:
        return self.strategy.sites(depth)

    def looks_at(self, depth: int) -> tuple[int | None, ...]:
        return self.strategy.looks_at(depth)

    def weighs_attention(self) -> bool:
        return self.strategy.weighs_attention()

    def reduce(self, view: VisionView) -> Selection:
        return self.strategy.reduce(view)
