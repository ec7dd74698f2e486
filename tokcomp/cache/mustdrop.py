"""MustDrop, cache stage: the cache follows the final token set."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from tokcomp.registry import CACHE
from tokcomp.stages import CachePolicy, LayerSpec, resolve_layer
from tokcomp.types import CacheView, Selection, Signal

__all__ = ["MustDrop"]

_PUBLISHED_LAYER, _PUBLISHED_DEPTH = 2, 32


@CACHE.register("mustdrop")
class MustDrop(CachePolicy):
    """Cuts the caches of the earlier layers to the vision tokens that survived the whole prefill.

    "Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model", Liu et al.,
    arXiv 2411.10803, where it is called the output-aware cache policy. Acts once, after the prefill, on ``first_layer``
    and all later layers: an entry stays iff it is text or its vision token was still alive after the last layer. Layers
    below keep everything. It takes nothing away where no prefill filter acted.

    The published code gives a new token, in every layer, the position that equals that layer's cache length, and leaves
    the cached keys at the angles at which they were computed: ``positions="renumber"``, the default. In the layers
    between the cuts those angles may lie beyond the new token's; ``"keep"`` gives every layer the true position.

    Departures from the authors' code, which hard-codes 32 layers and one sample: the first layer is scaled to the depth
    and every sample keeps its own set.

    Attributes:
        first_layer: first layer whose cache is cut. None: the published 2 of 32, scaled to the depth.
        keep_text: always true; text entries stay by the rule.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.FINAL_TOKENS})
    layers_alike: ClassVar[bool] = True
    paper: ClassVar[str] = "MustDrop, arXiv 2411.10803"

    first_layer: LayerSpec | None = Field(
        default=None, description="first layer whose cache is cut; none: the published one, scaled to the depth"
    )
    positions: Literal["keep", "renumber", "rerotate"] = Field(
        default="renumber", description="position of a new token: its true one, or the length of the layer's cache"
    )
    keep_text: Literal[True] = Field(default=True, description="entries of text tokens stay, by the rule")

    def acts_on(self, depth: int) -> range:
        if self.first_layer is None:
            return range(_PUBLISHED_LAYER * depth // _PUBLISHED_DEPTH, depth)
        return range(resolve_layer(self.first_layer, depth, what="cache.mustdrop.first_layer"), depth)

    def after_prefill(self, view: CacheView) -> Selection:
        keep = (view.final | ~view.vision) & view.valid  # (b, g, l)
        if self.respects_protected:
            keep |= view.protected & view.valid
        return Selection.from_mask(keep[:, 0])  # no step before this one tells the heads apart
