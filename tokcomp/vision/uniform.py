"""Control: tokens at regular distances."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from tokcomp.budget import Budget, SharedBudget
from tokcomp.registry import VISION
from tokcomp.stages import CompatibilityError, VisionReducer
from tokcomp.types import Selection, Site, VisionView

__all__ = ["Uniform"]


@VISION.register("uniform")
class Uniform(SharedBudget, VisionReducer):
    """Keeps tokens at regular distances, in image order: a control that knows nothing but places.

    Acts on the feature layer, before the projector. With ``layout`` 1d, K of N tokens are those at the middles of K
    equal pieces of the sequence, ``floor((2 i + 1) N / (2 K))``. With 2d they form a lattice of ``kh`` rows and ``kw``
    columns of the patch grid, ``kh = round(sqrt(K rows / columns))``, ``kw = floor(K / kh)``, which keeps ``kh kw <=
    K`` tokens.

    Attributes:
        keep_ratio: share of the tokens that is kept. The default gives way where ``keep_tokens`` is given.
        keep_tokens: number of tokens that is kept (2d: at most).
        layout: along the sequence, or a lattice of the grid.
    """

    keep_tokens: int | None = Field(default=None, ge=1, description="number of tokens that is kept (2d: at most)")
    layout: Literal["1d", "2d"] = Field(default="1d", description="along the sequence, or a lattice of the patch grid")

    def sites(self, depth: int) -> tuple[Site, ...]:
        return (Site.features(),)

    def reduce(self, view: VisionView) -> Selection:
        return self._line(view, self.budget) if self.layout == "1d" else self._lattice(view, self.budget)

    def _line(self, view: VisionView, budget: Budget) -> Selection:
        counts = view.counts[:, None]
        kept = budget.resolve(counts)
        piece = torch.arange(budget.resolve(view.n_tokens), device=view.device)
        keep = (2 * piece + 1) * counts // (2 * kept.clamp(min=1))  # (b, k)
        return Selection(keep=keep.masked_fill(piece >= kept, -1), ascending=True)

    def _lattice(self, view: VisionView, budget: Budget) -> Selection:
        rows, columns = view.grid
        if view.n_tokens != rows * columns or not bool(view.valid.all()):
            raise CompatibilityError(
                f"vision.uniform.layout=2d needs every patch of the {rows} x {columns} grid, and an earlier stage has "
                f"left {view.counts.tolist()} tokens: use layout=1d"
            )
        wanted = budget.resolve(rows * columns)
        # Both bounds matter on long thin grids alone, where the rounded root goes beyond the grid or the budget.
        high = min(rows, wanted, max(1, round(math.sqrt(wanted * rows / columns))))
        wide = min(columns, wanted // high)
        chosen = torch.zeros(rows, columns, dtype=torch.bool, device=view.device)
        chosen[_middles(rows, high, view.device)[:, None], _middles(columns, wide, view.device)] = True
        return Selection.from_mask(chosen.flatten()[view.origin])


def _middles(n: int, k: int, device: torch.device) -> Tensor:
    """The places 0..n-1 at the middles of k equal pieces."""
    return (2 * torch.arange(k, device=device) + 1) * n // (2 * k)
