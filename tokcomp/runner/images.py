"""What the vision stage knows of the images of one tower call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokcomp.models.adapter import Layout
from tokcomp.runner.cuts import Cuts, moves
from tokcomp.types import Selection, Site

__all__ = ["Images", "pixel_digest"]


@dataclass
class Images:
    """The token table of one tower call: i rows (images, tiles, frames), n units of the longest, k tokens left of it.

    Attributes:
        layout: the units of each row and the placeholders that they fill.
        kind: ``image`` or ``video``.
        origin: the unit of its row that each token stands at ``[i, k]``.
        valid: False for padding ``[i, k]`` (at the end of a row).
        sizes: units that each token stands for ``[i, k]`` float32.
        protected: key tokens ``[i, k]``.
        cuts: where each original unit went.
        uniform: no row holds padding (known without asking the device).
        touched: a reducer changed the sequence.
        marked: key tokens were marked (known without asking).
        reordered: tokens may stand in another order than that of their units.
        blocks: of the tower that has run: blocks, prefix tokens, and how many cuts were made in it.
        projected_tokens: tokens of each row that the projector computes ``[i]``, or one number.
        digest: integer per row that depends on its pixels only ``[i]``, or None where nobody needs it.
    """

    layout: Layout
    kind: str
    origin: Tensor
    valid: Tensor
    sizes: Tensor
    protected: Tensor
    cuts: Cuts
    uniform: bool = True
    touched: bool = False
    marked: bool = False
    reordered: bool = False
    blocks: tuple[int, int, int] = (0, 0, 0)
    projected_tokens: Tensor | int = 0
    digest: Tensor | None = None

    @classmethod
    def fresh(cls, layout: Layout, device: torch.device, kind: str = "image") -> Images:
        """Every unit a token of its own."""
        counts = [rows * columns for rows, columns in layout.grids]
        n = max(counts)
        index = torch.arange(n, device=device).expand(len(counts), n)
        uniform = min(counts) == n
        valid = torch.ones_like(index, dtype=torch.bool)
        if not uniform:
            valid = index < torch.tensor(counts, device=device)[:, None]
        return cls(
            layout=layout,
            kind=kind,
            origin=index,
            valid=valid,
            sizes=torch.ones(index.shape, device=device) if uniform else valid.float(),
            protected=torch.zeros_like(valid),
            cuts=Cuts(index if uniform else index.where(valid, -1), whole=uniform),
            uniform=uniform,
        )

    @property
    def n_rows(self) -> int:
        return len(self.layout.grids)

    @property
    def n_units(self) -> int:
        """Units of the longest row."""
        return self.cuts.start.shape[1]

    @property
    def source(self) -> Tensor:
        """The token that each original unit is in now ``[i, n]``, -1 where it was dropped or is padding."""
        return self.cuts.source

    @property
    def history(self) -> list[tuple[Site, Tensor]]:
        """After each site that shortened the sequence: the site and ``source`` as it was then."""
        return self.cuts.history

    @property
    def units(self) -> tuple[int, ...]:
        """Units of each row, before anything was dropped."""
        return tuple(rows * columns for rows, columns in self.layout.grids)

    @property
    def even(self) -> bool:
        """Every row has equally many units."""
        return min(self.units) == max(self.units)

    @property
    def patches(self) -> tuple[int, ...]:
        """Patches of each row in the tower."""
        if self.layout.patches is not None or self.layout.members is None:
            return self.layout.patches or self.units
        return tuple(members.numel() for members in self.layout.members)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of units; where rows of the tower differ, those of the first."""
        return self.layout.grids[0]

    @cached_property
    def block_tokens(self) -> list[Tensor]:
        """Per tower block, the tokens of each row that enter it ``[i]``, prefix included; found when it is asked for."""
        depth, n_prefix, inside = self.blocks
        changes = {site.layer: source for site, source in self.history[:inside] if site.layer is not None}
        patches = 1 if self.members is None else self.members.shape[2]
        entering = [torch.tensor(self.patches) + n_prefix]
        for number in range(depth - 1):
            after = changes.get(number)
            entering.append(entering[-1] if after is None else (after.amax(dim=1) + 1) * patches + n_prefix)
        return entering[:depth]

    @cached_property
    def members(self) -> Tensor | None:
        """The patches that make up each unit ``[i, n, g]``, or None where a unit is one patch."""
        if self.layout.members is None:
            return None
        return pad_sequence(list(self.layout.members), batch_first=True).to(self.valid.device)

    @cached_property
    def flat(self) -> Tensor:
        """Where each unit stands in ``[i, n]`` laid end to end ``[sum of units]``."""
        if self.even:
            return torch.arange(self.n_rows * self.n_units, device=self.valid.device)
        starts = torch.arange(self.n_rows, device=self.valid.device) * self.n_units
        return torch.cat([start + torch.arange(count, device=start.device)
                          for start, count in zip(starts, self.units, strict=True)])  # fmt: skip

    @cached_property
    def placeable(self) -> Tensor | None:
        """Which units have a placeholder ``[i, n]``; None where all have (a model that unpads its tiles cuts some off)."""
        placed = self.layout.placed
        if placed is None:
            return None
        known = torch.zeros(sum(self.units), dtype=torch.bool, device=placed.device)
        known[placed[placed >= 0]] = True
        if bool(known.all()):
            return None
        rows = pad_sequence([*known.split(list(self.units))], batch_first=True)
        return rows.to(self.valid.device)

    @cached_property
    def weights(self) -> Tensor | None:
        """How much of each of ``members`` is in a unit ``[i, n, g]``; None for equal parts."""
        if self.layout.weights is None:
            return None
        return pad_sequence(list(self.layout.weights), batch_first=True).to(self.valid.device)

    @property
    def patch_valid(self) -> Tensor | None:
        """Which of the tokens in the tower's rows are real ``[i, k]``; None: all. Where units are several patches, no token
        leaves inside the tower."""
        if self.layout.members is None:
            return None if self.uniform else self.valid
        patches = self.patches
        if self.layout.regrouped or min(patches) == max(patches):
            return None
        return (
            torch.arange(max(patches), device=self.valid.device)
            < torch.tensor(patches, device=self.valid.device)[:, None]
        )

    def counts(self) -> Tensor:
        """Tokens of each row ``[i]``."""
        return self.valid.sum(dim=1)

    def in_rows(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """``x`` with rows of ``counts`` one after another ``[..., sum, d]`` as ``[i, max, d]``, padded with zeros."""
        parts = x.reshape(-1, x.shape[-1]).split(list(counts))
        return pad_sequence(parts, batch_first=True)

    def apply(self, site: Site, selection: Selection, sizes: Tensor) -> None:
        """Follow a (cleaned) selection; ``sizes`` are the token sizes that merging gave ``[i, k]``."""
        n = self.origin.shape[1]
        self.marked = self.marked or selection.protect is not None
        if not moves(selection, n):
            if selection.protect is not None:
                self.protected = (self.protected | selection.protect) & self.valid
            return
        keep, ragged = selection.keep, selection.ragged
        k = keep.shape[1]
        whole = self.uniform and not ragged  # nothing is padding, before and after
        present = self.valid[:, :k] if whole else keep >= 0 if ragged else torch.ones_like(keep, dtype=torch.bool)
        index = keep.clamp(min=0) if ragged else keep
        if self.marked:
            self.protected = _protected_after(self.protected, selection, index) & present
        else:
            self.protected = self.protected[:, :k]
        self.cuts.note(site, selection, n)
        origin = self.origin.gather(1, index)
        self.origin = origin.where(present, 0) if ragged else origin
        self.sizes = sizes
        self.valid = present
        self.uniform = not ragged or bool(present.all())
        self.touched = True
        self.reordered = self.reordered or not selection.ascending

    def settle(self) -> Selection | None:
        """Let tokens stand at units that have a placeholder, and tell which can stay; None: all of them.

        A token that was merged stands at the first of its units that has one; a token whose units all have none goes.
        """
        placeable = self.placeable
        if placeable is None:
            return None
        n = self.n_units
        unit = torch.arange(n, device=placeable.device).expand_as(placeable)
        slots = self.origin.new_full((self.n_rows, self.origin.shape[1] + 1), n)
        source = self.source.where(placeable & (self.source >= 0), self.origin.shape[1])
        first = slots.scatter_reduce(1, source, unit, "amin")[:, :-1]  # (i, k)
        home = placeable.gather(1, self.origin)
        self.origin = self.origin.where(home | (first == n), first)
        return Selection.from_mask(self.valid & (home | (first < n)))

    def alive(self) -> Tensor:
        """Which units a token stands at ``[i, n]``."""
        return self.at_units(self.valid) if self.touched else self.valid

    def at_units(self, values: Tensor) -> Tensor:
        """``values`` ``[i, k]`` of the tokens at the units at which they stand ``[i, n]``; zero elsewhere."""
        if not self.touched:
            return values if self.uniform else values.masked_fill(~self.valid, 0)
        return values.new_zeros(self.n_rows, self.n_slots).scatter(1, self.home, values)[:, : self.n_units]

    @property
    def home(self) -> Tensor:
        """The unit that each token stands at; padding, where there is any, one beyond the last ``[i, k]``."""
        return self.origin if self.uniform else self.origin.where(self.valid, self.n_units)

    @property
    def n_slots(self) -> int:
        """Places that ``home`` knows."""
        return self.n_units if self.uniform else self.n_units + 1

    def standing(self) -> Tensor:
        """For the j-th unit at which a token stands, counted along the row, the unit of the token that is j-th in the order
        in which they shall stand ``[i, n]``; other units are their own."""
        home = self.home
        own = torch.arange(self.n_slots, device=home.device).expand(self.n_rows, -1)
        return own.scatter(1, home.sort(dim=1).values, home)[:, : self.n_units]


def _protected_after(protected: Tensor, selection: Selection, index: Tensor) -> Tensor:
    if selection.assign is None:
        after = protected.gather(1, index)
    else:  # a slot is protected when any of its members was
        slots = selection.assign.clamp(min=0)
        members = (protected & (selection.assign >= 0)).long()
        after = torch.zeros_like(index).scatter_add_(1, slots, members) > 0
    return after if selection.protect is None else after | selection.protect


def pixel_digest(pixels: Tensor) -> Tensor:
    """An integer from the bits of one image's pixels, int64; equal for equal images, whatever their batch."""
    flat = pixels.flatten().float().contiguous().view(torch.int32).long()
    # Odd multipliers that differ from pixel to pixel; int64 arithmetic wraps, which is what a hash wants.
    weights = torch.arange(flat.shape[0], device=flat.device).mul_(2).add_(1).mul_(-7046029254386353131)
    return (flat * weights).sum()
