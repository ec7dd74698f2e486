"""Merging: evicted values go on inside the entries most like them."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from tokcomp.cache.wrapper import Wrapper
from tokcomp.ops.pivots import nearest_survivor
from tokcomp.registry import CACHE
from tokcomp.stages import CachePolicy
from tokcomp.types import CacheView, Selection

__all__ = ["Merging"]


@CACHE.register("merging")
class Merging(Wrapper):
    """Merges the values of the entries that another policy evicts into the surviving entries with the most similar keys.

    In the spirit of "D2O: Dynamic Discriminative Operations for Efficient Generative Inference of Large Language Models",
    Wan et al., arXiv 2406.13035, as a published library of policies does it. Acts whenever ``base`` evicts: entry p goes
    to the survivor c of its head with the largest cosine of their (rotated) keys, if that is at least ``threshold``, with
    weight ``w = max(cos, 0) |v_p| / (|v_p| + |v_c|)``; the survivor's value becomes
    ``(v_c + sum w v_p) / (1 + sum w)``. Keys stay as they are, so positions are not mixed.

    Entries that the wrapper's own fields exempt come on top of the base's budget.

    Attributes:
        base: the policy that decides what leaves.
        threshold: smallest cosine at which an entry is merged; others are dropped.
        merge_fraction: of a head's evicted entries this share, the most similar ones, is merged.
    """

    paper: ClassVar[str] = "after D2O, arXiv 2406.13035"

    threshold: float = Field(default=0.0, ge=-1, le=1, description="smallest cosine at which an entry is merged")
    merge_fraction: float = Field(default=1.0, gt=0, le=1, description="share of the evicted entries that is merged")

    @field_validator("base")
    @classmethod
    def _evicts(cls, base: CachePolicy) -> CachePolicy:
        if base.hides():
            raise ValueError(f"'{base.name}' only hides entries as configured: there is nothing to merge")
        return base

    def departures(self) -> dict[str, str]:
        compared = "every entry that leaves is compared with all that stay, as published"
        return {**super().departures(), "cost": compared}

    def merges_keys(self) -> bool:
        return False

    def after_prefill(self, view: CacheView) -> Selection | None:
        return self._merged(view, self.base.after_prefill(view))

    def after_step(self, view: CacheView) -> Selection | None:
        return self._merged(view, self.base.after_step(view))

    def _merged(self, view: CacheView, selection: Selection | None) -> Selection | None:
        if selection is None or selection.assign is not None:
            return selection
        selection = self._with_exempt(view, selection)
        cosine, slot, evicted = nearest_survivor(view.keys, selection, view.valid)
        length = view.values.float().norm(dim=-1)  # (b, g, l)
        keep = selection.keep if selection.keep.dim() == 3 else selection.keep[:, None].expand(*length.shape[:2], -1)
        receiver = length.gather(2, keep.clamp(min=0)).gather(2, slot)
        weight = cosine.clamp(min=0) * length / (length + receiver).clamp(min=torch.finfo(length.dtype).tiny)
        merged = evicted & (cosine >= self.threshold)
        if self.merge_fraction < 1:
            merged &= cosine >= self._bar(cosine, evicted)
        # An entry without weight would leave nothing behind but its share of rounding.
        merged &= weight > 0
        return Selection(keep=keep, assign=slot.masked_fill(evicted & ~merged, -1).masked_fill(~view.valid, -1),
                         weight=weight.masked_fill(~evicted, 1.0), ragged=selection.ragged,
                         ascending=selection.ascending)  # fmt: skip

    def _bar(self, cosine: Tensor, evicted: Tensor) -> Tensor:
        """The cosine above which ``merge_fraction`` of a head's evicted entries lie ``[b, g, 1]``, interpolated."""
        ranked = cosine.masked_fill(~evicted, torch.inf).sort(dim=-1).values
        last = (evicted.sum(dim=-1, keepdim=True) - 1).clamp(min=0)
        at = (1 - self.merge_fraction) * last.double()
        below, above = at.floor().long(), at.ceil().long()
        low, high = ranked.gather(-1, below), ranked.gather(-1, above)
        return torch.lerp(low, high.where(high.isfinite(), low), (at - below).float())

    def _with_exempt(self, view: CacheView, selection: Selection) -> Selection:
        exempt = super().exempt(view)
        if exempt is None or not (self.keep_text or self.respects_protected):
            return selection
        keep = (
            selection.keep if selection.keep.dim() == 3 else selection.keep[:, None].expand(*view.valid.shape[:2], -1)
        )
        n = view.n_entries
        chosen = torch.zeros(*view.valid.shape[:2], n + 1, dtype=torch.bool, device=view.device)
        chosen = chosen.scatter(2, keep.where(keep >= 0, n), True)[..., :n]
        return Selection.from_mask(chosen | (exempt & view.valid))
