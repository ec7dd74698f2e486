"""Expected attention: what queries like the prompt's would attend to from the coming positions."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from tokcomp.ops.recency import ends, first
from tokcomp.registry import CACHE
from tokcomp.scored import ScoredPolicy
from tokcomp.types import CacheView, Signal

__all__ = ["ExpectedAttention"]


@CACHE.register("expected_attention")
class ExpectedAttention(ScoredPolicy):
    """Keeps the entries that coming queries are expected to attend to, from the distribution of the prompt's queries.

    "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries Distribution", Devoto et al.,
    arXiv 2510.00636. Acts once, after the prefill, per KV head; no attention is looked at. The prompt's queries before
    their rotation, those of the first ``sinks`` tokens left out, have a mean mu and a covariance C per query head. With
    R the mean of the rotations to the next ``future`` positions, an entry's expected logit is
    ``k R mu / sqrt(d) + k R C R' k' / (2 d)`` ``[b, h, l]``; its softmax over the entries behind the sinks, averaged over
    the heads of a group and multiplied with the length of the entry's value, is the score ``[b, g, l]``. The sinks stay.

    Departures: padding has no part in mean and covariance.

    Attributes:
        future: coming positions that are averaged over.
        sinks: first entries, which stay and are left out of the statistics.
        covariance: whether the logits' second term counts.
        value_norm: whether the values' lengths count.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.QUERIES})
    paper: ClassVar[str] = "Expected Attention, arXiv 2510.00636"

    future: int = Field(default=512, ge=1, description="coming positions that are averaged over")
    sinks: int = Field(default=4, ge=0, description="first entries, which stay")
    covariance: bool = Field(default=True, description="whether the covariance of the queries counts")
    value_norm: bool = Field(default=True, description="whether the values' lengths count")

    def score(self, view: CacheView) -> Tensor:
        behind = view.valid & ~first(view.valid, self.sinks)  # (b, g, l)
        logits = self._logits(view, behind[:, :1])
        hidden = ~behind.repeat_interleave(logits.shape[1] // behind.shape[1], dim=1)
        weights = logits.masked_fill(hidden, torch.finfo(logits.dtype).min).softmax(dim=-1).masked_fill(hidden, 0.0)
        expected = weights.unflatten(1, (behind.shape[1], -1)).mean(dim=2)
        return expected * view.values.float().norm(dim=-1) if self.value_norm else expected

    def stays(self, view: CacheView, entries: Tensor) -> Tensor:
        exempt, sinks = self.exempt(view), ends(view.valid, self.sinks, 0, entries)
        return sinks if exempt is None else sinks | exempt

    def _logits(self, view: CacheView, seen: Tensor) -> Tensor:
        """Expected logits ``[b, h, l]`` by the queries of the tokens ``seen`` ``[b, 1, l]``."""
        queries, rotation = view.queries.float(), view.rotation(self.future)[:, None]  # (b, h, l, d), (b, 1, d, d)
        counts = seen.sum(dim=-1)[..., None, None].clamp(min=1)
        inside = queries.masked_fill(~seen[..., None], 0.0)
        mean = inside.sum(dim=2, keepdim=True) / counts  # (b, h, 1, d)
        group = queries.shape[1] // view.keys.shape[1]
        keys = view.keys.float().masked_fill(~view.valid[..., None], 0.0).repeat_interleave(group, dim=1)
        width = keys.shape[-1]
        logits = (keys @ (mean @ rotation.mT).mT)[..., 0] / width**0.5
        if self.covariance:
            centred = (inside - mean).masked_fill(~seen[..., None], 0.0)
            spread = rotation @ (centred.mT @ centred / counts) @ rotation.mT  # (b, h, d, d)
            logits = logits + ((keys @ spread) * keys).sum(dim=-1) / (2 * width)
        return logits
