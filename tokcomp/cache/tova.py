"""TOVA: what the current token attends to."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tokcomp.budget import Budgeted
from tokcomp.ops.recency import last
from tokcomp.registry import CACHE
from tokcomp.stages import CachePolicy
from tokcomp.types import CacheView, Selection, Signal

__all__ = ["TOVA"]


@CACHE.register("tova")
class TOVA(Budgeted, CachePolicy):
    """Keeps the entries that the current token attends to most, at every step, with one set for all heads of a layer.

    "Transformers are Multi-State RNNs", Oren et al., EMNLP 2024, arXiv 2401.06104. Acts after the prefill, on the last
    prompt token's row, and after every decoding step, once its attention is computed. The score of an entry is the mean
    of that row over all query heads ``[b, l]``; the ``n`` highest stay. Nothing is remembered from step to step.

    Published code differs in one point: in the authors' the current token's own entry competes with the others and may
    leave at once (``current="competes"``), a later port keeps it (``"stays"``).

    Departures: none in the rule. The authors' option to close the gaps in the positions is left out.

    Attributes:
        keep_ratio: entries of the cache as share of the prompt's length before compression. The default gives way where
            ``keep_tokens`` is given.
        keep_tokens: entries of the cache.
        current: whether the current token's own entry may leave.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.RECEIVED_ATTENTION})
    acts_in_decoding: ClassVar[bool] = True
    layers_alike: ClassVar[bool] = True
    paper: ClassVar[str] = "TOVA, EMNLP 2024, arXiv 2401.06104"

    current: Literal["competes", "stays"] = Field(
        default="competes", description="whether the current token's own entry may leave at once"
    )

    def prefill_rows(self, counts: Tensor, after: Tensor) -> Tensor:
        return torch.ones_like(counts)

    def after_prefill(self, view: CacheView) -> Selection | None:
        return self._select(view)

    def after_step(self, view: CacheView) -> Selection | None:
        return self._select(view)

    def _select(self, view: CacheView) -> Selection | None:
        if self.keep_tokens is not None and view.n_entries <= self.keep_tokens:
            return None  # known without asking the device
        valid, exempt = view.valid[:, 0], self.exempt(view)  # (b, l): the rule never tells the heads apart
        stay = None if exempt is None else exempt[:, 0]
        if self.current == "stays":
            newest = last(valid, 1)
            stay = newest if stay is None else stay | newest
        scores = view.received.sum(dim=1)
        return Selection.top_k(scores, self.budget.resolve(view.prompt), valid=valid, protected=stay)
