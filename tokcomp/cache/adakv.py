"""AdaKV: a layer's budget goes to the heads that need it."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from tokcomp.cache.wrapper import Wrapper
from tokcomp.ops.allocation import head_capacities, keep_best_of_all
from tokcomp.registry import CACHE
from tokcomp.scored import ScoredPolicy
from tokcomp.stages import CachePolicy
from tokcomp.types import CacheView, Selection

__all__ = ["AdaKV"]


@CACHE.register("adakv")
class AdaKV(Wrapper):
    """Shares a layer's budget out to its KV heads by the scores of another policy, and stores no more than that.

    "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM Inference", Feng et al.,
    arXiv 2407.11550. Acts once, after the prefill. ``base`` gives the scores ``[b, g, l]``, the entries that stay in any
    case and the uniform budget n per head. The best ``floor(alpha n)`` entries of every head are safe; of all others the
    layer's best stay, whichever head they are of, so that a layer with g heads keeps g n entries per sample.

    Heads then hold different numbers of entries. The runner stores them packed, g n rows per sample and no padding, and
    reads them so; a published port keeps all entries and only makes some of them unattractive.

    ``allocation="published"`` is the authors' rule: of the entries that compete, each head gets its count among the layer's
    best times ``1 - alpha``, rounded, plus ``floor(alpha c)``, with c its uniform budget without those that stay in any
    case. Rounding makes its total inexact.

    Departures: the authors' code keeps entries per query head and knows one sample. Scores must be comparable between
    heads: attention is, norms of keys are only roughly.

    Attributes:
        base: the policy that scores: one that keeps the best entries per head once (``snapkv``, ``pyramidkv``,
            ``expected_attention``, ``knorm``...). Its budget is the heads' mean.
        alpha: share of the uniform budget that every head has for sure.
        allocation: how the rest is shared out.
    """

    paper: ClassVar[str] = "Ada-KV, arXiv 2407.11550"

    alpha: float = Field(
        default=0.2, ge=0, le=1, description="share of the uniform budget that every head has for sure"
    )
    allocation: Literal["exact", "published"] = Field(
        default="exact", description="share out exactly the budget, or round as published"
    )

    @field_validator("base")
    @classmethod
    def _scores(cls, base: CachePolicy) -> CachePolicy:
        if not isinstance(base, ScoredPolicy):
            raise ValueError(
                f"'{base.name}' gives no scores per head: take snapkv, pyramidkv, knorm, keydiff or the like"
            )
        if getattr(base, "heads", "own") != "own" or getattr(base, "block", None) is not None:
            raise ValueError(f"'{base.name}' must score every head's entries at once: leave its heads and block unset")
        return base

    @property
    def scorer(self) -> ScoredPolicy:
        """The base, as what it was checked to be."""
        assert isinstance(self.base, ScoredPolicy)
        return self.base

    def packs(self) -> bool:
        return True

    def after_prefill(self, view: CacheView) -> Selection:
        entries, scores = self.scorer.entries(view), self.scorer.score(view)
        must = torch.zeros_like(view.valid)
        for stay in (self.scorer.stays(view, entries), self.exempt(view)):
            must = must if stay is None else must | (stay & view.valid)
        if self.allocation == "published":
            return self._published(view, scores, entries, must)
        safe = (entries.double() * self.alpha).floor().long().clamp(min=1)
        # What must stay by itself is among the safe ones of its head.
        ranked = scores.masked_fill(must, torch.inf)
        top = Selection.top_k(ranked, safe, valid=view.valid)
        sure = must | _chosen(top, view)
        return Selection.from_mask(keep_best_of_all(ranked, entries, view.valid, sure))

    def _published(self, view: CacheView, scores: Tensor, entries: Tensor, must: Tensor) -> Selection:
        compete = view.valid & ~must
        capacity = (entries - must.sum(dim=-1)).clamp(min=0)
        _, own = head_capacities(scores, capacity, compete, floor_share=self.alpha)
        kept = must | _chosen(Selection.top_k(scores, own, valid=compete), view)
        # A head that got nothing keeps its best entry: no row may be empty.
        alone = ~kept.any(dim=-1, keepdim=True) & _chosen(Selection.top_k(scores, 1, valid=view.valid), view)
        return Selection.from_mask(kept | alone)


def _chosen(selection: Selection, view: CacheView) -> Tensor:
    n = view.n_entries
    chosen = torch.zeros(*view.valid.shape[:2], n + 1, dtype=torch.bool, device=view.device)
    return chosen.scatter(2, selection.keep.where(selection.keep >= 0, n), True)[..., :n]
