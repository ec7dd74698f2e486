"""ToMe: merges similar tokens in every block of the tower."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from tokcomp.ops.matching import bipartite_matching, merge_schedule
from tokcomp.registry import VISION
from tokcomp.stages import CompatibilityError, VisionReducer
from tokcomp.types import Selection, Signal, Site, VisionView

__all__ = ["ToMe"]

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


@VISION.register("tome")
class ToMe(VisionReducer):
    """Merges, between attention and MLP of every tower block, the r tokens that resemble another one most into it.

    Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv 2210.09461. The tower itself gets faster, too.

    Tokens are compared by the block's attention keys (mean over heads) with
    :func:`tokcomp.ops.matching.bipartite_matching`; a merged token is the mean weighted by sizes, and later blocks add
    log(size) to the attention logits (``proportional_attention``). The sequence ends as the published code leaves it:
    alternating halves pile up, image order is lost.

    There is no published setting for vision-language models. The default share 0.028 is 16 tokens per block of a tower
    with 576 patches: 208 of them reach the language model of LLaVA-1.5, whose features leave the tower after 23 of its
    24 blocks.

    Departures from the authors' code: rows of unequal length merge as each would alone, and key tokens (``protected``)
    neither merge nor are merged into; the code knows neither. Where a tower folds groups of patches into one token
    (Qwen-VL, GLM-4V), groups merge, compared by the mean of their patches' keys, and keep the rotary position of the
    group that they stand at.

    Attributes:
        r: tokens to merge in each block: a number, a share of the image's patches below 1 (at least one token unless it
            is 0), or a list with one number per block (padded with 0). Never more than half of the tokens present.
        inflect: f of the paper's schedule, from -1 (most in the first blocks) over 0 (constant) to 1; the sum stays.
        proportional_attention: add log(size) to the logits; meant for models that were not trained with merging.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.KEYS})
    paper: ClassVar[str] = "Token Merging: Your ViT But Faster, ICLR 2023, arXiv 2210.09461"

    r: Count | Share | tuple[Count, ...] = Field(
        default=0.028, description="tokens to merge per block: a number, a share of the patches, or a list per block"
    )
    inflect: float = Field(default=0.0, ge=-1, le=1, description="slope of the schedule: -1 decreasing, 0 constant")
    proportional_attention: bool = Field(
        default=True, description="add log(size) to the attention logits of merged tokens"
    )

    @model_validator(mode="after")
    def _list_has_its_own_schedule(self) -> ToMe:
        if isinstance(self.r, tuple) and self.inflect:
            raise ValueError(f"inflect={self.inflect} shapes a single r, and r is a list: leave one of them out")
        return self

    def sites(self, depth: int) -> tuple[Site, ...]:
        if isinstance(self.r, float):  # the number of patches is not known yet
            return tuple(Site.mid(layer) for layer in range(depth)) if self.r else ()
        return tuple(Site.mid(layer) for layer, r in enumerate(self._schedule(self.r, depth)) if r)

    def reduce(self, view: VisionView) -> Selection:
        r = self.r
        if isinstance(r, float):
            r = max(1, round(r * view.grid[0] * view.grid[1])) if r else 0
        now = self._schedule(r, view.depth)[view.site.layer or 0]
        return bipartite_matching(
            view.keys,
            now,
            n_prefix=view.n_prefix,
            valid=view.valid if view.padded else None,
            locked=view.protected if view.marked else None,
        )

    def weighs_attention(self) -> bool:
        return self.proportional_attention

    def _schedule(self, r: int | tuple[int, ...], depth: int) -> tuple[int, ...]:
        try:
            return merge_schedule(r, depth, inflect=self.inflect)
        except ValueError as error:
            raise CompatibilityError(f"vision.tome.{error}") from error
