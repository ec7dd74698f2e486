"""LOOK-M: text first, and vision entries merged into what stays."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokcomp.ops.pivots import nearest_survivor
from tokcomp.ops.recency import last
from tokcomp.registry import CACHE
from tokcomp.scored import ScoredPolicy
from tokcomp.types import CacheView, Selection, Signal

__all__ = ["LookM"]


@CACHE.register("lookm")
class LookM(ScoredPolicy):
    """Keeps recent entries, then text, then the vision entries that received most attention, and merges the others into them.

    "LOOK-M: Look-Once Optimization in KV Cache for Efficient Multimodal Long-Context Inference", Wan et al., Findings of
    EMNLP 2024, arXiv 2406.18139. Acts once, after the prefill, per KV head. Of n entries the last ``recent_ratio`` n stay (at
    least one). The rest goes to the entries with the largest attention received from all prompt rows ``[b, g, l]``, text
    before vision: text is preferred, not exempt, and if it fills the budget all older vision entries go.

    Merging: each dropped entry p goes to the kept entry c with the most similar key. ``pivotal``:
    ``k_c <- (k_c + sum (k_p + k_c) / 2) / (1 + #p)``, ``average``: ``k_c <- (k_c + sum k_p) / (1 + #p)``, and the same with
    values. Keys are averaged as they are cached, rotated.

    Departures from published code: text comes first by a sort with two keys, where the code lowers vision scores by 10000,
    which rounds them; every sample is merged for itself, in float32; the paper's weighted merging is left out.

    Attributes:
        recent_ratio: share of the budget that is recent entries.
        merge: what becomes of dropped entries.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.RECEIVED_ATTENTION})
    paper: ClassVar[str] = "LOOK-M, Findings of EMNLP 2024, arXiv 2406.18139"

    keep_ratio: float | None = Field(default=0.2, gt=0, le=1, description="share of the entries that stays")
    recent_ratio: float = Field(default=0.1, ge=0, le=1, description="share of the budget that is recent entries")
    merge: Literal["pivotal", "average", "none"] = Field(
        default="pivotal", description="what becomes of dropped entries"
    )

    def departures(self) -> dict[str, str]:
        if self.merge == "none":
            return {}
        return {"cost": "every entry that leaves is compared with all that stay, as published"}

    def score(self, view: CacheView) -> Tensor:
        """Minus the rank: text before vision, by attention among its kind."""
        by_attention = view.received.sort(dim=-1, descending=True, stable=True).indices
        text = ~view.vision.gather(-1, by_attention)
        order = by_attention.gather(-1, text.byte().sort(dim=-1, descending=True, stable=True).indices)
        rank = torch.arange(view.n_entries, device=view.device).expand_as(order)
        return -torch.zeros_like(order).scatter(-1, order, rank).float()

    def stays(self, view: CacheView, entries: Tensor) -> Tensor:
        recent = last(view.valid, (entries.double() * self.recent_ratio + 1e-9).long().clamp(min=1))
        exempt = self.exempt(view)
        return recent if exempt is None else recent | exempt

    def after_prefill(self, view: CacheView) -> Selection:
        selection = super().after_prefill(view)
        if self.merge == "none":
            return selection
        _, slot, evicted = nearest_survivor(view.keys, selection, view.valid)
        assign, weight = slot.masked_fill(~view.valid, -1), torch.ones_like(view.received)
        if self.merge == "pivotal":
            # Half of itself per merged entry: the pivot's own part, 1 + #p / 2, is its weight in the mean.
            merged = torch.zeros_like(weight).scatter_add(2, slot, evicted.float())
            weight = torch.where(evicted, 0.5, 1 + merged.gather(2, slot) / 2)
        return replace(selection, assign=assign, weight=weight)
