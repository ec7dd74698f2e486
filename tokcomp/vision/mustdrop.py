"""MustDrop's vision stage: merge alike neighbours early, mark key tokens late."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field

from tokcomp.ops.pooling import merge_windows
from tokcomp.registry import VISION
from tokcomp.stages import CompatibilityError, LayerSpec, VisionReducer, resolve_layer
from tokcomp.types import Selection, Signal, Site, VisionView

__all__ = ["MustDrop"]


@VISION.register("mustdrop")
class MustDrop(VisionReducer):
    """Merges windows of similar patches into one token each and marks the tokens that the CLS token attends to most.

    Liu, Shi et al., "Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model", 2024, arXiv
    2411.10803. With no field given this is the published setting.

    After tower block ``merge_layer``: a ``window`` x ``window`` block of patches whose mean pairwise cosine is at least
    ``threshold`` becomes its mean. After block ``key_layer``: the ``ceil(key_ratio * n)`` of the n tokens left that
    have the highest CLS attention, mean over heads, become key tokens, which later stages keep
    (``respects_protected``).

    Departures from the authors' code:

    - Each image merges all of its own passing windows. The code merges in every image of a batch as many as the image
      with the fewest has, so that an image's result depends on its neighbours; that rule lives on as
      ``batch_minimum`` of :func:`tokcomp.ops.pooling.merge_windows`.
    - Where the window does not divide the grid, the rest of the grid stays unmerged; the code needs it to divide.
    - Layers are fields; the code has the first and the 24th block built in.
    - Where a tower folds groups of patches into one token (Qwen-VL, GLM-4V), windows are of groups: they are compared by the
      states of all their patches side by side, and a merged group is the mean of its members patch by patch. Without a CLS
      token the attention received stands in for the CLS token's.

    Attributes:
        merge_layer: tower block after which windows merge (paper and code: the first).
        window: side of a window in patches.
        threshold: least mean cosine of a window that merges; above 1 nothing merges, at -1 everything does.
        key_ratio: share of the merged tokens that become key tokens, rounded up; 0 marks none.
        key_layer: tower block whose CLS attention chooses the key tokens; it must come after ``merge_layer``.
        order: ``published``: merged windows stand first, by descending similarity, then all other tokens in image
            order; ``image``: all tokens in image order, a merged window at the place of its last patch.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.CLS_ATTENTION})
    without_cls: ClassVar[Literal["received", "refuse"]] = "received"
    protects: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model, 2024, arXiv 2411.10803"
    )

    merge_layer: LayerSpec = Field(default=0, description="tower block after which windows of similar patches merge")
    window: int = Field(default=3, ge=2, description="side of a window in patches")
    threshold: float = Field(default=0.8, description="least mean pairwise cosine of a window that merges")
    key_ratio: float = Field(default=0.08, ge=0, le=1, description="share of the merged tokens that become key tokens")
    key_layer: LayerSpec = Field(default=-1, description="tower block whose CLS attention chooses the key tokens")
    order: Literal["image", "published"] = Field(
        default="published", description="merged windows first (published), or everything in image order"
    )

    def sites(self, depth: int) -> tuple[Site, ...]:
        merge = resolve_layer(self.merge_layer, depth, what="vision.mustdrop.merge_layer")
        if self.key_ratio == 0:
            return (Site.block(merge),)
        key = resolve_layer(self.key_layer, depth, what="vision.mustdrop.key_layer")
        if key <= merge:
            raise CompatibilityError(
                f"vision.mustdrop.key_layer={self.key_layer} is block {key} of this tower and merge_layer="
                f"{self.merge_layer} is block {merge}: key tokens are chosen among the merged tokens, so give a "
                "key_layer after merge_layer, or key_ratio=0 for no key tokens"
            )
        return Site.block(merge), Site.block(key)

    def reduce(self, view: VisionView) -> Selection:
        if view.site == self.sites(view.depth)[0]:
            return self._merge(view)
        return self._mark(view)

    def _merge(self, view: VisionView) -> Selection:
        return merge_windows(
            view.tokens,
            view.grid,
            (self.window, self.window),
            self.threshold,
            order=self.order,
            valid=view.valid if view.padded else None,
            sizes=view.sizes,
            origin=view.origin,
            protected=view.protected if view.marked else None,
        )

    def _mark(self, view: VisionView) -> Selection:
        attention = view.cls_attention.float().mean(dim=1)  # (b, n), 0 for padding
        # Stable: of equal attention the lower index wins, on every device, and padding comes last.
        order = attention.sort(dim=-1, descending=True, stable=True).indices
        protect = torch.zeros_like(view.valid)
        if view.padded:
            place = torch.arange(view.n_tokens, device=view.device).expand_as(order)
            protect.scatter_(1, order, place < (view.counts.double() * self.key_ratio)[:, None])
        else:
            protect.scatter_(1, order[:, : math.ceil(view.n_tokens * self.key_ratio)], True)
        return Selection.all(view.n_tokens, batch_size=view.batch_size, device=view.device, protect=protect)
