"""Cache policies that score entries once and keep the best: what most of them are, and what wrappers build on."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from tokcomp.budget import Budgeted
from tokcomp.stages import CachePolicy
from tokcomp.types import CacheView, Selection

__all__ = ["ScoredPolicy"]


class ScoredPolicy(Budgeted, CachePolicy):
    """A policy that scores the prompt's entries, per key/value head, and keeps the best ones once the prefill is done. Others
    can build on its scores.

    Attributes:
        keep_ratio: share of the entries that stays, those that must stay included. The default gives way where
            ``keep_tokens`` is given.
        keep_tokens: number of entries per head that stays.
    """

    @abstractmethod
    def score(self, view: CacheView) -> Tensor:
        """The worth of every entry ``[b, g, l]``; the highest stay."""

    def entries(self, view: CacheView) -> Tensor:
        """Entries of each sample and head that stay ``[b, g]``."""
        return self.budget.resolve(view.counts)

    def stays(self, view: CacheView, entries: Tensor) -> Tensor | None:
        """Entries that stay whatever their score, inside the budget ``entries`` ``[b, g]``: a mask ``[b, g, l]``, or None."""
        return self.exempt(view)

    def after_prefill(self, view: CacheView) -> Selection:
        entries = self.entries(view)
        return Selection.top_k(self.score(view), entries, valid=view.valid, protected=self.stays(view, entries))
