"""DART: keep what differs from a few pivots, drop their duplicates."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokcomp.one_cut import OneCut
from tokcomp.ops.similarity import unit
from tokcomp.registry import PREFILL
from tokcomp.stages import LayerSpec
from tokcomp.types import PrefillView, Selection, Signal

__all__ = ["Dart"]


@PREFILL.register("dart")
class Dart(OneCut):
    """Keeps a few pivot tokens and, for each pivot, the vision tokens that resemble it least.

    "Stop Looking for 'Important Tokens' in Multimodal Language Models: Duplication Matters More", Wen et al.,
    EMNLP 2025, arXiv 2502.11494. Acts once, between the layers K-1 and K, and needs no attention map.

    - Pivots are the tokens with the largest L1 norm of their keys in layer K-1 (rotated, all key/value heads together):
      ``image_pivots`` of the vision tokens and ``text_pivots`` of the text after the last image.
    - With h the output of layer K-1 through the model's final norm, each pivot in turn, vision before text and each in
      the order of the prompt, takes from the vision tokens not yet taken the m of lowest cosine to its own h.
    - Vision pivots and all that is taken go on, in their order and under their positions.

    Departures from the authors' code: it visits the pivots in the order of a hash table, which depends on the length of the
    prompt; here in ascending order. Samples of a batch decide for themselves; equal cosines go to the earlier token; key
    tokens of the vision stage stay on top.

    Attributes:
        layer: the paper's K, at least 1: tokens leave before layer K.
        keep_ratio: share of the vision tokens that is kept, 1 minus the paper's reduction ratio. The default gives way where
            ``keep_tokens`` is given.
        keep_tokens: number of vision tokens that is kept.
        image_pivots, text_pivots: how many.
        rounding: ``published``: every pivot takes ``m = trunc(budget / pivots)`` tokens, so that ``image_pivots`` more than
            the budget stay, or a few less than that; ``exact``: the budget is met, vision pivots included, and the first
            pivots take one more where it does not divide.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.KEYS, Signal.TEXT, Signal.FINAL_NORM})
    paper: ClassVar[str] = "DART, EMNLP 2025, arXiv 2502.11494"

    layer: LayerSpec = Field(default=2, description="the paper's K, at least 1: tokens leave before this layer")
    keep_ratio: float | None = Field(default=0.2222, gt=0, le=1, description="share of the vision tokens that is kept")
    image_pivots: int = Field(default=4, ge=1, description="pivots among the vision tokens")
    text_pivots: int = Field(default=4, ge=0, description="pivots among the text tokens after the last image")
    rounding: Literal["published", "exact"] = Field(
        default="published", description="whole shares for each pivot as published, or the budget met exactly"
    )

    def departures(self) -> dict[str, str]:
        if self.rounding == "exact":
            return {}
        return {"budget": "every pivot takes a whole number of tokens as published; rounding=exact meets the budget"}

    def guided_by(self) -> str | None:
        return f"prefill.dart.text_pivots={self.text_pivots}" if self.text_pivots else None

    def filter(self, view: PrefillView) -> Selection:
        most: int | Tensor = self.image_pivots
        if self.rounding == "exact":
            most = self.budget.resolve(view.counts).clamp(max=self.image_pivots)
        image = _strongest(view.keys, view.valid, most)  # (b, p), -1 where there are fewer
        text = _strongest(view.text_keys, view.text_valid, self.text_pivots)
        states = unit(view.final_norm(view.tokens), floor=1e-8)  # (b, n, d)
        pivots = torch.cat(
            [_at(states, image), unit(view.final_norm(_at(view.text, text)), floor=1e-8)], dim=1
        )  # (b, p, d)
        similar = pivots @ states.transpose(1, 2)  # (b, p, n)
        shares = self._shares(view.counts, image, text)  # (b, p)
        place = torch.arange(view.n_tokens, device=view.device)
        kept = _mask(image, view.n_tokens)
        for pivot in range(similar.shape[1]):
            pool = view.valid & ~kept
            least = similar[:, pivot].masked_fill(~pool, torch.inf).argsort(dim=1, stable=True)
            taken = (place < shares[:, pivot, None]).expand_as(pool)
            kept = kept | (torch.zeros_like(pool).scatter(1, least, taken) & pool)
        if self.respects_protected:
            kept = kept | (view.protected & view.valid)
        return Selection.from_mask(kept)

    def _shares(self, counts: Tensor, image: Tensor, text: Tensor) -> Tensor:
        """How many tokens each pivot takes ``[b, p]``."""
        there = torch.cat([image, text], dim=1) >= 0
        pivots, own = there.sum(dim=1), (image >= 0).sum(dim=1)
        if self.rounding == "published":
            wanted = (counts.double() * (self.keep_ratio or 1)).long()
            if self.keep_tokens is not None:
                wanted = (counts - own).clamp(max=self.keep_tokens)
            return (wanted // pivots)[:, None] * there
        rest = self.budget.resolve(counts) - own
        rank = there.long().cumsum(dim=1) - 1
        extra = rank < (rest % pivots)[:, None]
        return ((rest // pivots)[:, None] + extra.long()) * there


def _strongest(keys: Tensor, valid: Tensor, k: int | Tensor) -> Tensor:
    """The k tokens of largest key norm, ascending ``[b, at most k]``; -1 at the end where a row has fewer.

    Args:
        keys: ``[b, g, n, d_head]``.
    """
    if isinstance(k, int) and min(k, keys.shape[2]) == 0:
        return torch.empty(keys.shape[0], 0, dtype=torch.long, device=keys.device)
    return Selection.top_k(keys.float().abs().sum(dim=(1, 3)), k, valid=valid).keep


def _at(states: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` ``[b, k]`` of ``[b, n, d]``; any row where it is -1."""
    return states.gather(1, index.clamp(min=0)[..., None].expand(-1, -1, states.shape[2]))


def _mask(index: Tensor, n: int) -> Tensor:
    """``index`` ``[b, k]`` (-1: none) as a mask ``[b, n]``."""
    mask = torch.zeros(index.shape[0], n + 1, dtype=torch.bool, device=index.device)
    return mask.scatter(1, index.where(index >= 0, n), True)[:, :n]
