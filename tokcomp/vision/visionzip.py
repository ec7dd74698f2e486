"""VisionZip: the tokens that the CLS token attends to most, and the rest gathered into a few."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tokcomp.budget import Budgeted
from tokcomp.ops.merging import gather_tokens, merge_into
from tokcomp.ops.similarity import nearest
from tokcomp.registry import VISION
from tokcomp.stages import CompatibilityError, VisionReducer
from tokcomp.types import Selection, Signal, Site, VisionView

__all__ = ["VisionZip"]

_CONTEXTUAL_SHARE = 10 / 64


@VISION.register("visionzip")
class VisionZip(Budgeted, VisionReducer):
    """Keeps the CLS token and the patches it attends to most, and gathers all others into a few contextual tokens.

    Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025, arXiv 2412.04467.
    Acts on the feature layer, before the projector.

    Of a budget of ``d + c`` tokens, ``d`` are dominant: the CLS token and the ``d - 1`` patches of highest ``cls_attention``
    ``[b, h, n]``, summed over heads. Of the M patches that are left, in image order, every ``max(1, M // c)``-th, the first
    c of these, is a target; every other one follows the target whose attention key (mean over heads) is most similar by
    cosine. A contextual token is its target *plus* the mean of its followers, as in the authors' code. The sequence is CLS,
    dominant patches in image order, contextual tokens in target order.

    Published settings for 576 patches: 64 = 54 + 10, 128 = 108 + 20, 192 = 162 + 30 tokens; a budget without ``dominant``
    and ``contextual`` is split in this proportion.

    Departures from the authors' code: ``dominant`` counts what is dominant in the result (the code's own argument, too,
    counts the CLS token); a budget that covers all patches leaves the image as it is. Without CLS token all dominant tokens
    are patches, and the attention received ranks them (the published ports do so); they are patches, too, where the model makes
    a token of several patches or layers, which the CLS token is not.

    Attributes:
        keep_ratio: share of the tokens that is kept, dominant and contextual together. The default gives way where
            ``keep_tokens`` or ``dominant`` and ``contextual`` are given.
        keep_tokens: number of tokens that is kept.
        dominant: dominant tokens, the CLS token included; given together with ``contextual``, instead of a budget.
        contextual: contextual tokens.
        order: ``published``: contextual tokens last; ``image``: at their targets' places.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.CLS_ATTENTION, Signal.KEYS, Signal.CLS_TOKEN})
    without_cls: ClassVar[Literal["received", "refuse"]] = "received"
    paper: ClassVar[str] = (
        "VisionZip: Longer is Better but Not Necessary in Vision Language Models, CVPR 2025, arXiv 2412.04467"
    )

    dominant: int | None = Field(default=None, ge=1, description="dominant tokens, the CLS token included")
    contextual: int | None = Field(default=None, ge=0, description="contextual tokens")
    order: Literal["image", "published"] = Field(
        default="published", description="contextual tokens last (published), or at their targets' places"
    )

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> VisionZip:
        if (self.dominant is None) != (self.contextual is None):
            raise ValueError("dominant and contextual belong together: give both, or a budget")
        if self.dominant is not None and self.keep_tokens is not None:
            raise ValueError(f"give keep_tokens ({self.keep_tokens}), or dominant and contextual, not both")
        return self

    def departures(self) -> dict[str, str]:
        return {} if self.dominant is None else {"budget": "dominant and contextual are numbers of their own"}

    def sites(self, depth: int) -> tuple[Site, ...]:
        return (Site.features(),)

    def reduce(self, view: VisionView) -> Selection:
        counts = view.counts[:, None]
        dominant, contextual = self._split(counts)
        full = dominant + contextual >= counts  # (b, 1) nothing to merge
        patches = counts.where(full, dominant - int(view.has_cls_token))
        scores = view.cls_attention.sum(dim=1).masked_fill(~view.valid, -torch.inf)
        order = scores.sort(dim=-1, descending=True, stable=True).indices
        index = torch.arange(view.n_tokens, device=view.device).expand_as(order)
        kept = torch.zeros_like(view.valid).scatter(1, order, index < patches) & view.valid
        home = self._gathered(view, index, kept, contextual)
        place = index if self.order == "image" else index.where(kept, index + view.n_tokens)
        return self._merged(index, kept, home, place, ~full[:, 0] if view.has_cls_token else None)

    def _split(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Dominant and contextual tokens of each image ``[b, 1]``."""
        if self.dominant is None or self.contextual is None:
            budget = self.budget.resolve(counts)
            contextual = (budget.double() * _CONTEXTUAL_SHARE).round().long().clamp(min=1).minimum(budget - 1)
            return budget - contextual, contextual
        fewest = int(counts.min())
        if self.dominant + self.contextual > fewest:
            raise CompatibilityError(
                f"vision.visionzip.dominant={self.dominant} and contextual={self.contextual} make "
                f"{self.dominant + self.contextual} tokens, and an image has {fewest}: give fewer, or keep_ratio"
            )
        return torch.full_like(counts, self.dominant), torch.full_like(counts, self.contextual)

    def _gathered(self, view: VisionView, index: Tensor, kept: Tensor, contextual: Tensor) -> Tensor:
        """The token that each token is merged into ``[b, n]``, itself where it survives, -1 where it is dropped."""
        rest = view.valid & ~kept
        place = rest.cumsum(dim=1) - 1
        step = (rest.sum(dim=1, keepdim=True) // contextual.clamp(min=1)).clamp(min=1)
        target = rest & (place % step == 0) & (place // step < contextual)
        most = self._most_contextual(view.n_tokens)
        if most == 0:
            return index.where(kept, -1)
        ids = (~target).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]  # (b, c) ascending, then others
        _, best = nearest(view.keys, gather_tokens(view.keys, ids), target.gather(1, ids))
        home = ids.gather(1, best).where(target.any(dim=1, keepdim=True), -1)
        return index.where(kept | target, home.where(rest, -1))

    def _most_contextual(self, n_tokens: int) -> int:
        """Contextual tokens of the longest row, which has the most."""
        if self.contextual is not None:
            return min(self.contextual, n_tokens)
        return min(n_tokens, max(1, round(self.budget.resolve(n_tokens) * _CONTEXTUAL_SHARE)))

    def _merged(self, index: Tensor, kept: Tensor, home: Tensor, place: Tensor, cls_first: Tensor | None) -> Selection:
        """Sums with weight 1 for whoever stands in the result and 1 / followers for those who follow."""
        follows = (home >= 0) & (home != index)
        followers = torch.zeros_like(home).scatter_add_(1, home.clamp(min=0), follows.long())
        weight = followers.gather(1, home.clamp(min=0)).clamp(min=1).float().reciprocal().where(follows, 1.0)
        if cls_first is None:
            merged = merge_into(home, place)
            assert merged.assign is not None
            return Selection.merge(merged.keep, merged.assign, weight=weight, combine="sum", ragged=merged.ragged)
        # The CLS token stands first, at the place of a patch that has no slot of its own.
        free = (home >= 0).logical_not() & kept.logical_not() | follows
        seat = index.where(free, index.shape[1]).amin(dim=1, keepdim=True)
        seated = cls_first[:, None] & (index == seat)
        merged = merge_into(index.where(seated, home), place.masked_fill(seated, -1))
        assert merged.assign is not None
        into = merged.assign.gather(1, home.clamp(min=0)).masked_fill(home < 0, -1)
        assign = into.where(seated, merged.assign)
        return Selection.merge(merged.keep, assign, weight=weight, combine="sum", cls_first=cls_first,
                               ragged=merged.ragged)  # fmt: skip
