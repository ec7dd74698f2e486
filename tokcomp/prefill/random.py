"""Control: a random choice of the vision tokens between two layers."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from tokcomp.one_cut import OneCut
from tokcomp.ops.hashing import uniform
from tokcomp.registry import PREFILL
from tokcomp.types import PrefillView, Selection, Signal

__all__ = ["Random"]

_STREAM = 1  # other numbers than the vision and the cache stage draw from the same seed


@PREFILL.register("random")
class Random(OneCut):
    """Keeps a random choice of the vision tokens, in their order: the control that every filter has to beat.

    Acts once, before layer ``layer``, with FastV's layer numbers and budget, so that the two differ in nothing but the
    scores. A token's number depends on the image, the prompt, ``seed`` and the token's place among the image's
    placeholders: not on padding, neighbours in a batch, earlier cuts or the device.

    Attributes:
        layer: tokens leave before this layer, at least 1.
        keep_ratio: share of the vision tokens that is kept. The default gives way where ``keep_tokens`` is given.
        keep_tokens: number of vision tokens that is kept.
        seed: another seed, another choice.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.DIGEST})

    seed: int = Field(default=0, ge=0, description="seed of the choice")

    def filter(self, view: PrefillView) -> Selection:
        places = view.origin.clamp(min=0)  # (b, n)
        numbers = uniform(view.digest, int(places.max()) + 1, seed=self.seed, stream=_STREAM)
        return Selection.top_k(
            numbers.gather(1, places),
            self.budget.resolve(view.counts),
            valid=view.valid,
            protected=view.protected & view.valid if self.respects_protected else None,
        )
