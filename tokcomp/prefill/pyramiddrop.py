"""PyramidDrop: the deeper the layer, the fewer tokens."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from tokcomp.budget import refuse_table
from tokcomp.errors import CompatibilityError
from tokcomp.registry import PREFILL
from tokcomp.stages import LayerSpec, PrefillFilter, resolve_stages
from tokcomp.types import PrefillView, Selection, Signal

__all__ = ["PyramidDrop"]

_PUBLISHED_LAYERS, _PUBLISHED_DEPTH = (8, 16, 24), 32


@PREFILL.register("pyramiddrop")
class PyramidDrop(PrefillFilter):
    """Keeps, in front of a few layers, the vision tokens that the last instruction token is about to attend to most.

    "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction", Xing et al.,
    CVPR 2025, arXiv 2410.17247.

    In front of layer b the last prompt row is scored with that layer's own input norm, query and key projections and the
    current positions: the head mean of the softmax over the whole sequence, of which the vision columns are read. The
    ``trunc(n ratio)`` best go on in their order, where n is the number of vision tokens *at the beginning* of the
    prefill. Only these projections are computed ahead, one row of queries and all keys; the layer runs once.

    Departures from the authors' code: key/value heads may be fewer than query heads (each serves its group); at least one
    token stays; padding may stand on any side; a prompt is not cut to the tokenizer's maximum length.

    Attributes:
        layers: tokens leave before these layers, the first one that sees fewer of them. None: the published 8, 16, 24 of
            32, scaled to the depth.
        keep_ratios: what goes on into each of these layers, as a share of the vision tokens at the beginning.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.QUERY_ATTENTION})
    queries: ClassVar[Literal["last", "text"] | None] = "last"
    attention_of: ClassVar[Literal["this", "next"]] = "next"
    paper: ClassVar[str] = "PyramidDrop, CVPR 2025, arXiv 2410.17247"

    layers: tuple[LayerSpec, ...] | None = Field(
        default=None, min_length=1, description="layers before which tokens leave; none: the published ones, scaled"
    )
    keep_ratios: tuple[float, ...] = Field(
        default=(0.5, 0.25, 0.125),
        min_length=1,
        description="share of the first vision tokens that enters each of them",
    )
    positions: Literal["keep", "renumber"] = Field(
        default="renumber", description="position ids of the survivors in the layers after the cut"
    )

    @field_validator("layers")
    @classmethod
    def _after_the_first(cls, layers: tuple[LayerSpec, ...] | None) -> tuple[LayerSpec, ...] | None:
        if layers is not None and 0 in layers:
            raise ValueError("layers holds 0: tokens leave between two layers, so each is at least 1")
        return layers

    @model_validator(mode="after")
    def _one_share_per_layer(self) -> PyramidDrop:
        refuse_table(
            "keep_ratios", self.keep_ratios, len(_PUBLISHED_LAYERS if self.layers is None else self.layers), most=1
        )
        return self

    def _stages(self, depth: int) -> dict[int, int]:
        """The layer after which each stage acts, to its number."""
        what = "prefill.pyramiddrop.layers"
        stages = resolve_stages(self.layers, _PUBLISHED_LAYERS, _PUBLISHED_DEPTH, depth, what=what)
        if self.layers is not None and 0 in stages:
            raise CompatibilityError(
                f"{what}={list(self.layers)} names the first of this model's {depth} layers: tokens leave between two "
                "layers, so each is at least 1"
            )
        return {layer - 1: number for layer, number in stages.items() if layer > 0}

    def acts_after(self, depth: int) -> tuple[int, ...]:
        return tuple(self._stages(depth))

    def filter(self, view: PrefillView) -> Selection:
        share = self.keep_ratios[self._stages(view.depth)[view.layer]]
        return Selection.top_k(
            view.attention.float().mean(dim=1)[:, -1],  # (b, n)
            (view.initial.double() * share).long().clamp(min=1),
            valid=view.valid,
            protected=view.protected & view.valid if self.respects_protected else None,
        )
