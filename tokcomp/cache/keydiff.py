"""KeyDiff: keys unlike the others."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from tokcomp.registry import CACHE
from tokcomp.scored import ScoredPolicy
from tokcomp.types import CacheView, Selection

__all__ = ["KeyDiff"]


@CACHE.register("keydiff")
class KeyDiff(ScoredPolicy):
    """Keeps the entries whose keys point away from the mean direction of all keys, without looking at any attention.

    "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in Resource-Constrained
    Environments", Park et al., arXiv 2504.15364. Acts once, after the prefill, per KV head. The anchor is the mean of the
    normalised keys over the valid entries; an entry's score is minus the cosine of its (rotated) key with it ``[b, g, l]``.

    With ``block`` the rule is the paper's for prompts that are read in blocks: the first n entries are held; then block
    by block the pool of what is held and the block is scored against its own anchor, and its best n go on.

    Departures: the authors' code holds a batch of equal lengths; here padding is kept out of the anchor.

    Attributes:
        block: entries of a block; none: the prompt at once.
    """

    paper: ClassVar[str] = "KeyDiff, arXiv 2504.15364"

    block: int | None = Field(default=None, ge=1, description="entries of a block; none: the prompt at once")

    def departures(self) -> dict[str, str]:
        return {} if self.block is None else {"cost": "the prompt is read block by block, as published"}

    def score(self, view: CacheView) -> Tensor:
        return _unlikeness(_directions(view), view.valid)

    def after_prefill(self, view: CacheView) -> Selection:
        if self.block is None:
            return super().after_prefill(view)
        entries, exempt, directions = self.entries(view), self.exempt(view), _directions(view)
        rank = view.valid.cumsum(dim=-1) - 1  # (b, g, l)
        held = view.valid & (rank < entries[..., None])
        for start in range(0, view.n_entries, self.block):
            arriving = (
                view.valid & (rank >= entries[..., None] + start) & (rank < entries[..., None] + start + self.block)
            )
            pool = held | arriving
            must = None if exempt is None else exempt & pool
            chosen = Selection.top_k(_unlikeness(directions, pool), entries, valid=pool, protected=must).keep
            n = view.n_entries
            held = torch.zeros(*pool.shape[:2], n + 1, dtype=torch.bool, device=view.device)
            held = held.scatter(-1, chosen.where(chosen >= 0, n), True)[..., :n]
        return Selection.from_mask(held)


def _directions(view: CacheView) -> Tensor:
    return functional.normalize(view.keys.float(), dim=-1)  # (b, g, l, d)


def _unlikeness(directions: Tensor, pool: Tensor) -> Tensor:
    """Minus the cosine of each direction with the mean over the pool ``[b, g, l]``."""
    inside = directions.masked_fill(~pool[..., None], 0.0)
    anchor = inside.sum(dim=2) / pool.sum(dim=2, keepdim=True).clamp(min=1)  # (b, g, d)
    return -functional.cosine_similarity(directions, anchor[:, :, None], dim=-1)
