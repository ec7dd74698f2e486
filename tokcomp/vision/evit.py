"""EViT: inside the tower, what the CLS token does not attend to is fused into one token."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from tokcomp.ops.merging import merge_into
from tokcomp.registry import VISION
from tokcomp.stages import LayerSpec, VisionReducer, resolve_layer
from tokcomp.types import Selection, Signal, Site, VisionView

__all__ = ["EViT"]


@VISION.register("evit")
class EViT(VisionReducer):
    """Keeps, in a few blocks of the tower, the patches that the CLS token attends to most and fuses all others into one token.

    Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations", ICLR 2022,
    arXiv 2202.07800. Acts between attention and MLP of each of ``layers``; the tower itself gets faster, too.

    Of n tokens the ``ceil(keep_ratio n)`` with the highest ``cls_attention`` ``[b, h, n]`` of that block, mean over heads, stay;
    one more token is ``sum_j a_j x_j`` over all others, weighted by their attention and not normalised. It goes on as a token
    like any other, and may be fused in a later block.

    There is no published setting for vision-language models. The paper's blocks of a tower of 12 (the 4th, 7th and 10th) are
    shares of the depth here.

    Departures from the authors' code: survivors stay in image order, the fused token last (``order: published`` gives the code's
    descending attention); the language model reads positions from the order, a classifier does not. Fewer than two other tokens
    are not fused. Without CLS token the attention received takes its place.

    Attributes:
        layers: the blocks that drop tokens.
        keep_ratio: share of a block's tokens that stays, rounded up; every one of ``layers`` takes its share.
        fuse: fuse what does not stay into one token; else it is dropped.
        order: ``image``, or ``published``: by descending attention.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.CLS_ATTENTION})
    without_cls: ClassVar[Literal["received", "refuse"]] = "received"
    paper: ClassVar[str] = (
        "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations, ICLR 2022, "
        "arXiv 2202.07800"
    )

    layers: tuple[LayerSpec, ...] = Field(
        default=(0.25, 0.5, 0.75), min_length=1, description="the tower blocks that drop tokens"
    )
    keep_ratio: float = Field(default=0.7, gt=0, le=1, description="share of a block's tokens that stays, rounded up")
    fuse: bool = Field(default=True, description="fuse what does not stay into one token; else it is dropped")
    order: Literal["image", "published"] = Field(
        default="image", description="image order, or by descending attention as the code leaves it"
    )

    def departures(self) -> dict[str, str]:
        return {"budget": "a block's share is rounded up, and what does not stay becomes one more token, as published"}

    def sites(self, depth: int) -> tuple[Site, ...]:
        blocks = [resolve_layer(layer, depth, what="vision.evit.layers") for layer in self.layers]
        return tuple(Site.mid(block) for block in sorted(set(blocks)))

    def reduce(self, view: VisionView) -> Selection:
        counts = view.counts[:, None]
        kept = (counts.double() * self.keep_ratio).ceil().long()
        scores = view.cls_attention.mean(dim=1)
        # Stable: of equal attention the lower index wins, on every device, and padding comes last.
        order = scores.masked_fill(~view.valid, -torch.inf).sort(dim=1, descending=True, stable=True).indices
        index = torch.arange(view.n_tokens, device=view.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, index)
        stays = view.valid & ((rank < kept) | (kept + 1 >= counts))
        place = index if self.order == "image" else rank
        if not self.fuse:
            return merge_into(index.where(stays, -1), place)
        others = view.valid & ~stays
        # The fused token stands at the place of the best of its members.
        seat = order.gather(1, kept.clamp(max=view.n_tokens - 1))
        home = index.where(stays, seat.where(others, -1))
        plan = merge_into(home, place.masked_fill(index == seat, view.n_tokens).where(others, place))
        assert plan.assign is not None
        return Selection.merge(
            plan.keep, plan.assign, weight=scores.where(others, 1.0), combine="sum", ragged=plan.ragged
        )
