"""What became of the units of one tower call: the selections that shortened its sequence, one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from tokcomp.ops.merging import compose_source
from tokcomp.types import Selection, Site

__all__ = ["Cuts", "moves"]


def moves(selection: Selection, n: int) -> bool:
    """Whether a selection changes the sequence of ``n`` tokens; one that does not may still mark key tokens in it."""
    kept = selection.keep.shape[-1] == n and selection.ascending and not selection.ragged
    return not kept or selection.assign is not None


@dataclass
class Cuts:
    """Selections are noted while the model runs, and put together when somebody asks.

    Attributes:
        start: the token that each unit was at first ``[i, n]``, -1 for padding.
        whole: no unit was dropped and none is padding (known without asking the device).
    """

    start: Tensor
    whole: bool
    _known: list[tuple[Site, Tensor]] = field(default_factory=list)
    _noted: list[tuple[Site, Selection, int, bool]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._known) + len(self._noted)

    def note(self, site: Site, selection: Selection, n: int) -> None:
        """A (cleaned) selection has shortened the sequence of ``n`` tokens at ``site``."""
        # Weights are large and say nothing about where a token went.
        kept = Selection(keep=selection.keep, assign=selection.assign, complete=selection.complete)
        self._noted.append((site, kept, n, self.whole))
        self.whole = self.whole and selection.complete

    @property
    def history(self) -> list[tuple[Site, Tensor]]:
        """After each cut: the site, and the token in which each unit was then ``[i, n]``, -1 where it was dropped."""
        for site, selection, n, whole in self._noted:
            before = self._known[-1][1] if self._known else self.start
            self._known.append((site, compose_source(before, selection, n, whole=whole)))
        self._noted.clear()
        return self._known

    @property
    def source(self) -> Tensor:
        """The token in which each unit is now ``[i, n]``, -1 where it was dropped or is padding."""
        return self.history[-1][1] if self.history else self.start
