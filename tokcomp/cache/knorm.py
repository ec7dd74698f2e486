"""Knorm: the norms of the keys."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from tokcomp.ops.recency import ends
from tokcomp.registry import CACHE
from tokcomp.scored import ScoredPolicy
from tokcomp.stages import LayerSpec, resolve_layer
from tokcomp.types import CacheView

__all__ = ["Knorm"]


@CACHE.register("knorm")
class Knorm(ScoredPolicy):
    """Keeps the entries whose keys have the smallest norms, without looking at any attention.

    "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", Devoto et al., EMNLP 2024,
    arXiv 2406.11430: keys of small norm turn out to be those that receive much attention. Acts once, after the prefill,
    per KV head: the score of an entry is ``-||k||`` ``[b, g, l]``, taken of the rotated key (rotation keeps the norm).

    Departures from published code, which protects nothing: the first entries, which serve as attention sinks, and the
    most recent ones stay, inside the budget; set both to 0 for the plain rule.

    Attributes:
        sinks: first entries that stay.
        recent_tokens: last entries that stay.
        first_layer: first layer whose cache is shortened; the paper's experiments leave out the first two.
    """

    paper: ClassVar[str] = "L2 norm, EMNLP 2024, arXiv 2406.11430"

    sinks: int = Field(default=4, ge=0, description="first entries that stay")
    recent_tokens: int = Field(default=8, ge=0, description="last entries that stay")
    first_layer: LayerSpec = Field(default=0, description="first layer whose cache is shortened")

    def acts_on(self, depth: int) -> range:
        return range(resolve_layer(self.first_layer, depth, what="cache.knorm.first_layer"), depth)

    def score(self, view: CacheView) -> Tensor:
        return -view.keys.float().norm(dim=-1)  # (b, g, l)

    def stays(self, view: CacheView, entries: Tensor) -> Tensor:
        exempt, edges = self.exempt(view), ends(view.valid, self.sinks, self.recent_tokens, entries)
        return edges if exempt is None else edges | exempt
