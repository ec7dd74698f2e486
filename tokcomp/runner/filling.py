"""The columns of a prompt: what the tables of the images say of its placeholders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from tokcomp.deferred import deferred
from tokcomp.runner.apply import true_first
from tokcomp.runner.images import Images
from tokcomp.runner.placeholders import Item, Placement
from tokcomp.runner.sequence import Prompt

__all__ = ["build_prompt"]


def build_prompt(masks: Mapping[str, Tensor], present: Tensor | None, placement: Placement, *,
                 digest: Tensor | None) -> Prompt:  # fmt: skip
    """The columns of the prompt. Costs one look at the device; what only some strategies and the trace ask for is worked out
    when they do.

    Args:
        masks: per kind the placeholders ``[b, l]``. ``present``: the padding mask ``[b, l]``; None: no padding.
    """
    mask = torch.stack(list(masks.values())).any(dim=0) if len(masks) > 1 else next(iter(masks.values()))
    fillings = [
        _Filling(columns, placement, runs) for kind, columns in masks.items() if (runs := _runs(placement, kind))
    ]

    def filled(told: Callable[[_Filling], Tensor], rest: int = 0, dtype: torch.dtype = torch.bool) -> Tensor:
        table = torch.full(mask.shape, rest, dtype=dtype, device=mask.device)
        for filling in fillings:
            table = table.masked_scatter(filling.columns, told(filling))
        return table

    images = [placement.images[run[0].call] for filling in fillings for run in filling.runs]
    alive = filled(lambda filling: filling.of(_alive)) if any(table.touched for table in images) else mask
    marked = any(table.marked for table in images)
    text, there = (~mask, alive) if present is None else (present & ~mask, present & alive)
    rank = mask.cumsum(dim=1)
    after = text & (rank == rank[:, -1:])
    flags = [text, there, after] if present is None else [text, there, after, present]
    sums = torch.stack(flags).sum(dim=2)
    texts, visions, behind, *real = sums.tolist()
    padded = bool(real) and min(real[0]) < mask.shape[1]
    rows = max(behind)
    return Prompt(
        origin=deferred(lambda: (rank - 1).where(alive, -1)),
        image=deferred(lambda: (filled(_Filling.starts).cumsum(dim=1) - 1).where(mask, -1)),
        sizes=deferred(lambda: filled(lambda filling: filling.of(_sizes), 1, torch.float32)),
        vision=there,
        protected=filled(lambda filling: filling.of(_protected)) if marked else torch.zeros_like(mask),
        valid=text | there,
        lengths=torch.full_like(rank[:, -1], mask.shape[1]) if present is None else sums[3],
        texts=tuple(texts),
        visions=tuple(visions),
        behind=tuple(behind),
        present=present if padded else None,
        unit=deferred(lambda: filled(lambda filling: filling.of(_unit), -1, torch.long)),
        call=deferred(lambda: filled(_Filling.calls, -1, torch.long)),
        stands=_stands(mask, fillings) if any(table.reordered for table in images) else None,
        text_rows=rows,
        # How many columns each row has, right-aligned.
        text_valid=torch.arange(rows, 0, -1, device=mask.device) <= sums[2, :, None],
        digest=digest,
    )  # fmt: skip


@dataclass(frozen=True)
class _Filling:
    """What the images of one kind fill their placeholders ``columns`` ``[b, l]`` with, in the order in which the model does:
    ``runs`` of images that stand side by side in one tower call."""

    columns: Tensor
    placement: Placement
    runs: list[list[Item]]

    def of(self, told: Callable[[Images], Tensor]) -> Tensor:
        """What ``told`` says of each placeholder of a tower call, of all placeholders ``[p]``."""
        tables = {call: told(self.placement.images[call]) for call in {run[0].call for run in self.runs}}
        return self._joined([tables[run[0].call][run[0].start :][: _length(run)] for run in self.runs])

    def starts(self) -> Tensor:
        """Which placeholders are the first of their image ``[p]`` bool."""
        return self._joined([_starts(run, self.columns.device) for run in self.runs])

    def calls(self) -> Tensor:
        """The tower call of each placeholder ``[p]``."""
        return self._joined([torch.full((_length(run),), run[0].call, device=self.columns.device) for run in self.runs])

    def stands(self) -> Tensor:
        """The column whose token shall stand at each placeholder ``[p]``."""
        lengths = [_length(run) for run in self.runs]
        moved = zip(self.runs, accumulate(lengths, initial=0), strict=False)
        shifts = [
            torch.full((_length(run),), filled - run[0].start, device=self.columns.device) for run, filled in moved
        ]
        # The columns in the order in which they are filled.
        order = true_first(self.columns.reshape(1, -1))[0, : sum(lengths)] % self.columns.shape[1]
        return order[self.of(_standing) + self._joined(shifts)]

    def _joined(self, parts: list[Tensor]) -> Tensor:
        parts = [part.to(self.columns.device) for part in parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _runs(placement: Placement, kind: str) -> list[list[Item]]:
    """The images of a kind cut into runs that stand side by side in one tower call."""
    runs: list[list[Item]] = []
    for item in (item for sample in placement.items[kind] for item in sample):
        last = runs[-1][-1] if runs else None
        if last is not None and (last.call, last.start + last.length) == (item.call, item.start):
            runs[-1].append(item)
        else:
            runs.append([item])
    return runs


def _length(run: Sequence[Item]) -> int:
    return sum(item.length for item in run)


def _starts(run: Sequence[Item], device: torch.device) -> Tensor:
    length = run[0].length
    if all(item.length == length for item in run):
        return torch.arange(_length(run), device=device) % length == 0
    starts = torch.zeros(_length(run), dtype=torch.bool, device=device)
    for item in run:
        starts[item.start - run[0].start] = True
    return starts


def _stands(mask: Tensor, fillings: Sequence[_Filling]) -> Tensor:
    """For each column the one whose token shall stand there ``[b, l]``."""
    stands = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    for filling in fillings:
        stands = stands.masked_scatter(filling.columns, filling.stands())
    return stands


# What a tower call says of its placeholders ``[p]``. A separator is alive, of size 1 and no key token.


def _alive(table: Images) -> Tensor:
    return _at_placeholders(table, table.alive(), True)


def _sizes(table: Images) -> Tensor:
    return _at_placeholders(table, table.at_units(table.sizes), 1.0)


def _protected(table: Images) -> Tensor:
    return _at_placeholders(table, table.at_units(table.protected), False)


def _unit(table: Images) -> Tensor:
    """The unit, -1 for a separator."""
    placed, flat = table.layout.placed, table.flat
    return torch.arange(flat.shape[0], device=flat.device) if placed is None else placed.to(flat.device)


def _standing(table: Images) -> Tensor:
    """The placeholder whose token shall stand there. Where the model packs rows into an image, tokens stand in its order."""
    placed, n = table.layout.placed, table.n_units
    if placed is not None or not table.reordered:
        return torch.arange((table.flat if placed is None else placed).shape[0], device=table.flat.device)
    if table.even:
        return (table.standing() + torch.arange(table.n_rows, device=table.flat.device)[:, None] * n).flatten()
    # Unit j of a row is j placeholders behind its first one.
    own = torch.arange(table.flat.shape[0], device=table.flat.device)
    return own - table.flat % n + table.standing().flatten()[table.flat]


def _at_placeholders(table: Images, values: Tensor, separator: float | bool) -> Tensor:
    """Of ``values`` ``[i, n]`` of the units those at the placeholders; ``separator`` at separators."""
    found = values.flatten() if table.even else values.flatten()[table.flat]
    if table.layout.placed is None:
        return found
    unit = _unit(table)
    return found[unit.clamp(min=0)].masked_fill(unit < 0, separator)
