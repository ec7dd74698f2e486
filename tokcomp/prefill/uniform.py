"""Control: tokens at regular distances leave between two layers."""

from __future__ import annotations

import torch

from tokcomp.one_cut import OneCut
from tokcomp.registry import PREFILL
from tokcomp.types import PrefillView, Selection

__all__ = ["Uniform"]


@PREFILL.register("uniform")
class Uniform(OneCut):
    """Keeps vision tokens at regular distances, in their order: a control that knows nothing but places.

    Acts once, before layer ``layer``, with FastV's layer numbers and budget, so that the two differ in nothing but the
    scores. K of N tokens are those at the middles of K equal pieces of the sequence, ``floor((2 i + 1) N / (2 K))``. Key
    tokens of the vision stage stay on top.

    Attributes:
        layer: tokens leave before this layer, at least 1.
        keep_ratio: share of the vision tokens that is kept. The default gives way where ``keep_tokens`` is given.
        keep_tokens: number of vision tokens that is kept.
    """

    def filter(self, view: PrefillView) -> Selection:
        counts = view.counts[:, None]
        kept = self.budget.resolve(counts)
        piece = torch.arange(self.budget.resolve(view.n_tokens), device=view.device)
        place = ((2 * piece + 1) * counts // (2 * kept.clamp(min=1))).clamp(
            max=view.n_tokens - 1
        )  # (b, k) among the real tokens
        real = (~view.valid).to(torch.uint8).argsort(dim=1, stable=True)  # real tokens first, in their order
        keep = real.gather(1, place).masked_fill(piece >= kept, -1)
        if not self.respects_protected:
            return Selection(keep=keep, ascending=True)
        mask = torch.zeros(view.batch_size, view.n_tokens + 1, dtype=torch.bool, device=view.device)
        mask = mask.scatter(1, keep.where(keep >= 0, view.n_tokens), True)[:, :-1]
        return Selection.from_mask(mask | (view.protected & view.valid))
