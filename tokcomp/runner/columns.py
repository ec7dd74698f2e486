"""Which column of the conversation each entry of a cache layer is, whether it is padding, and where its key was turned to."""

from __future__ import annotations

import torch
from torch import Tensor

from tokcomp.errors import UnsupportedError
from tokcomp.runner.request import Request
from tokcomp.runner.tables import appended, filled

__all__ = ["Columns"]


class Columns:
    """The tables of a layer's entries. See :class:`~tokcomp.runner.cache.CompressedLayer` for what they hold."""

    request: Request
    seen: int
    valid: Tensor | None
    index: Tensor | None
    offset: Tensor | None
    phase: Tensor | None
    rows: Tensor | None

    @property
    def length(self) -> int:
        """Entries held, padding included."""
        raise NotImplementedError

    def lag(self, positions: Tensor) -> Tensor:
        """This layer's position ids for ``positions`` ``[b|1, l]`` or ``[p, b|1, l]`` of the model's own numbering."""
        return positions if self.offset is None else positions - self.offset[:, None]

    def full_index(self) -> Tensor:
        """Column of every entry in the uncompressed sequence ``[b, 1|g, l]``."""
        assert self.index is not None
        fresh = self.length - self.index.shape[-1]
        if fresh == 0:
            return self.index
        tail = torch.arange(self.seen - fresh, self.seen, device=self.index.device)
        return torch.cat([self.index, tail.expand(*self.index.shape[:-1], fresh)], dim=-1)

    def full_phase(self) -> Tensor:
        """Position of every key in this layer's numbering ``[b|1, 1|g, l]``, or its planes ``[b|1, 1|g, l, p]``.

        Raises:
            UnsupportedError: entries have left by a policy that does not go by positions.
        """
        if self.phase is None:
            raise UnsupportedError(
                "this cache was shortened by a policy that leaves positions as they are; one that numbers entries anew cannot "
                "go on with it: go on with the policy that began, or start a new prompt"
            )
        phase, fresh = self.phase, self.length - self.phase.shape[2]
        if fresh == 0:
            return phase
        later = self.coming()[:, None] - torch.arange(fresh, 0, -1, device=phase.device)  # (b|1, fresh)
        later = later[:, None] if phase.dim() == 3 else later[:, None, :, None]
        return appended(phase, later.expand(-1, -1, -1, *phase.shape[3:]))

    def following(self) -> Tensor:
        """Position of the coming token in the model's own numbering ``[b|1]``."""
        coming = self.request.next_position
        return coming if self.rows is None or coming.shape[0] == 1 else coming[self.rows]

    def settle(self) -> None:
        """Note where every key is: what follows need not stand next to it."""
        if self.phase is not None:
            self.phase = self.full_phase()

    def coming(self) -> Tensor:
        """Position of the coming token in this layer's numbering ``[b|1]``."""
        return self.following() if self.offset is None else self.following() - self.offset

    def follow(self, valid: Tensor, positions: Tensor) -> None:
        """Tokens of which ``valid`` ``[b, t]`` are no padding are about to follow, at ``positions`` of this layer's numbering
        ``[b, t]`` or ``[p, b, t]``."""
        columns = torch.arange(self.seen, self.seen + valid.shape[1], device=valid.device)
        phase = positions[:, None] if positions.dim() == 2 else positions.permute(1, 2, 0)[:, None]
        self.append_entries(columns.expand(valid.shape[0], 1, -1), valid[:, None], phase)

    def hide(self, shown: Tensor) -> None:
        """Of the columns read so far only those ``shown`` ``[b, c]`` are no padding."""
        index = self.full_index().expand(shown.shape[0], -1, -1)
        real = shown.gather(1, index.flatten(1)).view(index.shape)
        self.valid = real if self.valid is None else real & filled(self.valid, self.length)

    def append_entries(self, index: Tensor, valid: Tensor | None, phase: Tensor) -> None:
        """Entries are about to be added at the columns ``index`` ``[b, 1, t]``, with ``valid`` ``[b, 1, t]`` or None for all,
        their keys at ``phase`` ``[b|1, 1, t, ...]``."""
        held = self.length
        if held:
            if valid is not None or self.valid is not None:
                before = (
                    index.new_ones(index.shape[0], 1, held).bool() if self.valid is None else filled(self.valid, held)
                )
                valid = appended(before, torch.ones_like(index, dtype=torch.bool) if valid is None else valid)
            index = appended(self.full_index(), index)
        if self.phase is not None or not held:
            self.phase = appended(self.full_phase(), phase) if held else phase
        self.index, self.valid = index, valid
