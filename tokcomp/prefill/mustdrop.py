"""MustDrop, prefill stage: the dual-attention filter."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokcomp.registry import PREFILL
from tokcomp.stages import LayerSpec, PrefillFilter, resolve_layer
from tokcomp.types import PrefillView, Selection, Signal

__all__ = ["MustDrop"]

_PUBLISHED_LAYERS, _PUBLISHED_DEPTH = (2, 6, 10, 14), 32


@PREFILL.register("mustdrop")
class MustDrop(PrefillFilter):
    """Drops the vision tokens that the text as a whole hardly looks at and that no single text token looks at.

    "Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model", Liu et al.,
    arXiv 2411.10803. Acts on the output of a few language-model layers with that layer's own attention.

    Let M ``[t, n]`` be the head mean of the attention of the text rows after the image over the vision tokens (softmax
    over the whole sequence, not renormalised), ``g_j = sum_i M_ij`` and ``x_j = max_i M_ij``. Token j is dropped iff
    ``g_j < global_threshold * sum_j g_j`` *and* ``x_j < individual_threshold``, both strict; the sum runs over the
    vision tokens still alive, so later layers drop less. The vision stage's key tokens always survive, and the
    survivors stand in their order. Without text after the image nothing is dropped.

    Departures from the authors' code, which handles one sample, one image and 32 layers: every sample of a batch is
    filtered on its own; where nothing would survive the token with the largest ``g_j`` stays (the code fails there);
    without ``layers`` the published ones are scaled to the model's depth.

    Attributes:
        layers: layers on whose output the filter acts. None: the published 2, 6, 10, 14 of 32, scaled to the depth.
        global_threshold: theta_g. The defaults are the paper's setting for 192 tokens; those for 128 (0.0012, 0.001)
            and for 64 tokens (0.011, 0.01) were tuned on TextVQA too.
        individual_threshold: theta_i.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.QUERY_ATTENTION})
    queries: ClassVar[Literal["last", "text"] | None] = "text"
    paper: ClassVar[str] = "MustDrop, arXiv 2411.10803"

    layers: tuple[LayerSpec, ...] | None = Field(
        default=None,
        min_length=1,
        description="layers after which tokens leave; none: the published ones, scaled",
    )
    global_threshold: float = Field(default=0.001, ge=0, le=1, description="share of the text's attention, theta_g")
    individual_threshold: float = Field(default=0.001, ge=0, le=1, description="attention of one text token, theta_i")
    positions: Literal["keep", "renumber"] = Field(
        default="renumber", description="position ids of the survivors in the layers after the cut"
    )

    def acts_after(self, depth: int) -> tuple[int, ...]:
        if self.layers is None:
            return tuple(sorted({layer * depth // _PUBLISHED_DEPTH for layer in _PUBLISHED_LAYERS}))
        return tuple(sorted({resolve_layer(layer, depth, what="prefill.mustdrop.layers") for layer in self.layers}))

    def filter(self, view: PrefillView) -> Selection:
        wanted, largest = self._attended(view)
        important = (wanted >= self.global_threshold * wanted.sum(dim=1, keepdim=True)) | (
            largest >= self.individual_threshold
        )
        keep = important
        if self.respects_protected and view.marked:
            keep = keep | view.protected
        if view.padded:
            keep = keep & view.valid
            wanted = wanted.masked_fill(~view.valid, -1.0)
        # The first of those that are left; where nothing is, the token that is wanted most: of equal ones the first.
        best = wanted.masked_fill(keep, torch.inf).argmax(dim=1, keepdim=True)
        keep = keep.scatter(1, best, True)
        return Selection.from_mask(keep)

    def _attended(self, view: PrefillView) -> tuple[Tensor, Tensor]:
        """Sum and maximum over the real text rows of the head mean ``[b, n]``; 0 for padding."""
        if view.attention.shape[2] == 0:
            zero = torch.zeros(view.valid.shape, device=view.device)
            return zero, zero
        mean = view.attention.float().mean(dim=1)  # (b, t, n)
        return mean.sum(dim=1), mean.amax(dim=1)
