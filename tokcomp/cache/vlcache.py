"""VL-Cache: budgets by how sparse each layer's attention is."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokcomp.ops.recency import last
from tokcomp.registry import CACHE
from tokcomp.stages import CachePolicy
from tokcomp.types import CacheView, Selection, Signal

__all__ = ["VLCache", "layer_shares"]

_ALIVE = 0.01
_FLOOR, _RECENT = 0.01, 0.1


@CACHE.register("vlcache")
class VLCache(CachePolicy):
    """Keeps what the text after the image attends to, more of it in layers whose attention is dense.

    "VL-Cache: Sparsity and Modality-Aware KV Cache Compression for Vision-Language Model Inference Acceleration", Tu et al.,
    ICLR 2025, arXiv 2410.23317. Acts once, when the prefill has run through all layers. Of the rows behind the last vision
    token, an entry is alive in a row if it gets at least 1 % of the row's largest weight. A layer's sparsity is the share
    of these rows' causal cells that are not alive, a mean over heads. Layer l of M keeps the share
    ``(1 - sparsity_l) / sum (1 - sparsity) * M * keep_ratio`` of its entries, no less than 1 % and no more than all: recent ones,
    and those that the rows attend to most, summed over rows and the heads of a KV group ``[b, g, l]``.

    ``window="same"``: the recent entries are a tenth of the mean budget in every layer, and the others get nine tenths of
    the layer's share; ``"different"``: a tenth of the layer's share on top of it, so that a layer holds up to 1.1 times its
    share. Numbers are truncated and clipped shares are not made up for, so the total is near what was stated, not equal.

    Departures from published code, which applies the first sample's sets to all and averages sparsity over the batch:
    every sample has its own. Text is not exempt there either: it survives where it is recent or attended to.

    Attributes:
        keep_ratio: share of the entries that stays, over all layers.
        window: how many recent entries a layer keeps.
        heads: whether every KV head has a choice of its own, or one by the sums over all heads is shared.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.ATTENTION_ROWS, Signal.SURVEY})
    paper: ClassVar[str] = "VL-Cache, ICLR 2025, arXiv 2410.23317"

    keep_ratio: float = Field(default=0.1, gt=0, le=1, description="share of the entries that stays, over all layers")
    window: Literal["same", "different"] = Field(
        default="same", description="recent entries: alike in all layers or not"
    )
    heads: Literal["own", "shared"] = Field(default="own", description="a choice per KV head, or one for all")

    def departures(self) -> dict[str, str]:
        return {"budget": "the share is of all layers together, by their sparsity, with numbers truncated as published"}

    def prefill_rows(self, counts: Tensor, after: Tensor) -> Tensor:
        return after.clamp(min=1)

    def guided_by(self) -> str:
        return f"cache={self.name}"

    def survey(self, view: CacheView) -> Tensor:
        alive = torch.zeros(view.batch_size, dtype=torch.double, device=view.device)
        sums: Tensor | None = None
        heads = 1
        for attention, real in view.attention_rows:  # (b, h, t, l), (b, t)
            heads = attention.shape[1]
            attention = attention * real[:, None, :, None]
            bar = _ALIVE * attention.amax(dim=-1, keepdim=True)
            alive += ((attention >= bar) & (attention > 0)).sum(dim=(1, 2, 3))
            part = attention.sum(dim=2)
            sums = part if sums is None else sums + part
        assert sums is not None
        grouped = sums.view(view.batch_size, view.keys.shape[1], -1, view.n_entries).sum(dim=2)
        view.memory["importance"] = grouped
        counts = view.counts[:, 0].double()
        rows = self.prefill_rows(view.counts[:, 0], view.after).minimum(view.counts[:, 0]).double()
        cells = rows * counts - rows * (rows - 1) / 2  # row i of the last `rows` sees counts - rows + 1 + i entries
        return 1 - alive / (heads * cells)

    def after_prefill(self, view: CacheView) -> Selection:
        alike = self.window == "same"
        shares = layer_shares(view.surveyed, self.keep_ratio * (1 - _RECENT) if alike else self.keep_ratio,
                              floor=_FLOOR * (1 - _RECENT) if alike else _FLOOR)  # fmt: skip
        share = shares[:, view.layer, None]  # (b, 1)
        counts = view.counts.double()
        recent = _truncated(counts * _RECENT * (self.keep_ratio if alike else share))
        others = _truncated(counts * share).minimum((view.counts - recent).clamp(min=0))
        importance = view.memory["importance"]
        if self.heads == "shared":
            importance = importance.sum(dim=1, keepdim=True).expand_as(importance)
        stay = last(view.valid, recent)
        exempt = self.exempt(view)
        stay = stay if exempt is None else stay | exempt
        return Selection.top_k(importance, recent + others, valid=view.valid, protected=stay)


def layer_shares(sparsity: Tensor, mean: float, *, floor: float) -> Tensor:
    """The share of its entries that each layer keeps ``[b, depth]`` from the layers' sparsities ``[b, depth]``, NaN where a
    layer has none."""
    dense = (1 - sparsity).clamp(min=torch.finfo(sparsity.dtype).tiny)
    layers = (~dense.isnan()).sum(dim=1, keepdim=True)
    return (dense / dense.nansum(dim=1, keepdim=True) * mean * layers).clamp(min=floor, max=1)


def _truncated(numbers: Tensor) -> Tensor:
    return (numbers + 1e-6).long().clamp(min=1)
