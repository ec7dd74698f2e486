"""SparseVLM: the words that look at the image rate its tokens, and what is dropped is recycled."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tokcomp.budget import refuse_table
from tokcomp.ops.recycling import recycle
from tokcomp.registry import PREFILL
from tokcomp.stages import LayerSpec, PrefillFilter, resolve_stages
from tokcomp.types import PrefillView, Selection, Signal

__all__ = ["SparseVLM"]

_PUBLISHED_LAYERS, _PUBLISHED_DEPTH = (2, 6, 15, 19), 32


@PREFILL.register("sparsevlm")
class SparseVLM(PrefillFilter):
    """Keeps the vision tokens that the text's raters attend to most, and merges the best of the others into a few.

    "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", Zhang et al., ICML 2025,
    arXiv 2410.04417. Acts on the output of a few language-model layers with that layer's own attention.

    - Raters, once, on the embeddings: with W ``[n, t]`` the softmax over the text tokens of (vision embedding . text
      embedding), those text tokens whose mean over the vision tokens lies above the mean of all.
    - Rating: the head mean R ``[raters, n]`` of the raters' attention over the vision tokens; p_j is its mean over the
      raters, and the k largest p stay, in their order.
    - How many: ``k = trunc(rank(R) scale + bias)``, at most n - 1, with the numerical rank in float32; a layer whose R has
      full rank n is left alone. With ``keep_tokens`` or ``keep_ratios`` k is given layer by layer instead.
    - Recycling: the ``trunc(recycle d) + 1`` best of the d dropped tokens are clustered by density peaks into a tenth as
      many, plus one, and the mean of each cluster stands behind the kept tokens.

    Departures from the authors' code: every sample decides for itself; equal densities are told apart by order, not by
    noise; attention is softmaxed in float32; where no text token lies above the mean, all of them rate; a cluster's mean is
    divided by its count, not by that plus 1e-6; without ``layers`` the published ones are scaled to the depth.

    Attributes:
        layers: layers on whose output it acts. None: the published 2, 6, 15, 19 of 32, scaled to the depth; without the
            last one where three numbers are given by ``keep_tokens`` or ``keep_ratios``.
        scale, bias: tokens per rank, and on top. The defaults are the paper's setting for 192 tokens; (9, 6) is that for
            128, (0.8, 0) that for 64.
        keep_tokens: tokens kept at each layer instead, recycled ones not counted: (300, 200, 110), (303, 110, 36) and
            (66, 30, 17) are the authors' later settings for 192, 128 and 64 tokens.
        keep_ratios: the same as shares of the vision tokens at the beginning of the prefill.
        recycle: share of the dropped tokens that is recycled; 0: none.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.QUERY_ATTENTION, Signal.TEXT})
    queries: ClassVar[Literal["last", "text"] | None] = "text"
    paper: ClassVar[str] = "SparseVLM, ICML 2025, arXiv 2410.04417"

    layers: tuple[LayerSpec, ...] | None = Field(
        default=None, min_length=1, description="layers after which tokens leave; none: the published ones, scaled"
    )
    scale: float = Field(default=13.5, ge=0, description="tokens kept per rank of the raters' attention")
    bias: float = Field(default=0.0, ge=0, description="tokens kept on top")
    keep_tokens: tuple[int, ...] | None = Field(
        default=None, min_length=1, description="tokens kept at each layer, instead of going by the rank"
    )
    keep_ratios: tuple[float, ...] | None = Field(
        default=None, min_length=1, description="the same as shares of the vision tokens at the beginning"
    )
    recycle: float = Field(default=0.3, ge=0, lt=1, description="share of the dropped tokens that is recycled; 0: none")
    positions: Literal["keep", "renumber"] = Field(
        default="renumber", description="position ids of the survivors in the layers after the cut"
    )

    @model_validator(mode="after")
    def _one_number_per_layer(self) -> SparseVLM:
        if self.keep_tokens is not None and self.keep_ratios is not None:
            raise ValueError("give keep_tokens or keep_ratios, not both: set the other one to null")
        layers = len(self._published() if self.layers is None else self.layers)
        refuse_table("keep_tokens", self.keep_tokens, layers)
        refuse_table("keep_ratios", self.keep_ratios, layers, most=1)
        return self

    def _published(self) -> tuple[int, ...]:
        """The published layers; the settings with three numbers act at three."""
        table = self.keep_tokens or self.keep_ratios
        return _PUBLISHED_LAYERS[:3] if table is not None and len(table) == 3 else _PUBLISHED_LAYERS

    def _stages(self, depth: int) -> dict[int, int]:
        return resolve_stages(self.layers, self._published(), _PUBLISHED_DEPTH, depth, what="prefill.sparsevlm.layers")

    def departures(self) -> dict[str, str]:
        return {"cost": "recycled tokens are compared in pairs, as published"} if self.recycle else {}

    def acts_after(self, depth: int) -> tuple[int, ...]:
        return tuple(self._stages(depth))

    def prepare(self, view: PrefillView) -> None:
        logits = view.tokens.float() @ view.text.float().transpose(1, 2)  # (b, n, t)
        share = logits.masked_fill(~view.text_valid[:, None], -torch.inf).softmax(dim=-1)
        share = share.masked_fill(~view.valid[..., None], 0.0).sum(dim=1) / view.counts[:, None]
        mean = share.sum(dim=1, keepdim=True) / view.text_valid.sum(dim=1, keepdim=True)
        raters = (share > mean) & view.text_valid
        view.memory["raters"] = raters | (view.text_valid & ~raters.any(dim=1, keepdim=True))

    def filter(self, view: PrefillView) -> Selection:
        raters = view.memory["raters"]
        most = int(raters.sum(dim=1).max())
        first = raters.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]  # (b, r)
        rated = view.attention.float().mean(dim=1)  # (b, t, n)
        rated = rated.gather(1, first[..., None].expand(-1, -1, rated.shape[2]))
        rated = rated.masked_fill(~(raters.gather(1, first)[..., None] & view.valid[:, None]), 0.0)
        number = raters.sum(dim=1)
        relevance = rated.sum(dim=1) / number[:, None]
        kept = Selection.top_k(
            relevance,
            self._wanted(view, rated, number),
            valid=view.valid,
            protected=view.protected & view.valid if self.respects_protected else None,
        )
        return recycle(view.tokens, view.valid, kept, relevance, self.recycle) if self.recycle else kept

    def _wanted(self, view: PrefillView, rated: Tensor, raters: Tensor) -> Tensor:
        """Tokens that each sample keeps ``[b]``."""
        counts, stage = view.counts, self._stages(view.depth)[view.layer]
        if self.keep_tokens is not None:
            wanted = torch.full_like(counts, self.keep_tokens[stage])
        elif self.keep_ratios is not None:
            wanted = (view.initial.double() * self.keep_ratios[stage]).long()
        else:
            rank = _ranks(rated, raters, counts)
            wanted = (rank.double() * self.scale + self.bias).long()
            return torch.where(rank == counts, counts, torch.minimum(wanted, counts - 1).clamp(min=1))
        return torch.minimum(wanted, counts - 1).clamp(min=1)


def _ranks(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Numerical rank in float32 of the first ``rows`` rows of each ``[b, r, n]``, zero beyond; ``[b]``."""
    values = torch.linalg.svdvals(matrix)  # (b, min(r, n))
    floor = torch.maximum(rows, columns)[:, None] * torch.finfo(torch.float32).eps * values.amax(dim=1, keepdim=True)
    return (values > floor).sum(dim=1)
