"""Rows of different grids in one call of the tower: a reducer sees those of one grid at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokcomp.runner.apply import gather_tokens
from tokcomp.types import Selection, VisionView

__all__ = ["alike", "carried", "joined", "narrowed"]

_ON_LAST_AXIS = ("_cls_attention",)


def alike(grids: Sequence[tuple[int, int]], device: torch.device) -> list[tuple[tuple[int, int], Tensor]]:
    """The distinct grids, and the rows that have each."""
    rows: dict[tuple[int, int], list[int]] = {}
    for row, grid in enumerate(grids):
        rows.setdefault(grid, []).append(row)
    return [(grid, torch.tensor(numbers, device=device)) for grid, numbers in rows.items()]


def narrowed(view: VisionView, grid: tuple[int, int], rows: Tensor, n: int) -> VisionView:
    """The view of ``rows`` ``[r]`` alone, whose longest has ``n`` tokens."""

    def signals(given: Any) -> dict[str, Tensor]:
        return {
            name: value[rows][..., :n] if name in _ON_LAST_AXIS else value[rows][:, :n] for name, value in given.items()
        }

    own = {name: value for name, value in vars(view).items() if isinstance(value, Tensor)}
    whole = {name: own.pop(name)[rows] for name in ("_cls_token", "_digest") if name in own}
    extra = signals(view._extra)
    elsewhere = {block: signals(given) for block, given in view._elsewhere.items()}
    owners = tuple(view.owners[row] for row in rows.tolist()) if view.owners else ()
    return replace(view, grid=grid, owners=owners, **whole, **signals(own), _elsewhere=elsewhere, _extra=extra)  # type: ignore[arg-type]


def joined(parts: list[tuple[Tensor, Selection]], sizes: Tensor) -> Selection:
    """The selections of several groups of rows as one over all rows and tokens, whose sizes are ``sizes`` ``[b, n]``."""
    batch_size, n = sizes.shape
    width = max(selection.keep.shape[1] for _, selection in parts)
    first = parts[0][1]

    def spread(values: list[Tensor | None], shape: tuple[int, ...], fill: float) -> Tensor | None:
        found = next((value for value in values if value is not None), None)
        if found is None:
            return None
        out = found.new_full((batch_size, *shape), fill)
        for (rows, _), value in zip(parts, values, strict=True):
            if value is not None:
                padding = [side for size, own in zip(reversed(shape), reversed(value.shape[1:]), strict=True)
                           for side in (0, size - own)]  # fmt: skip
                out[rows] = torch.nn.functional.pad(value, padding, value=fill)
        return out

    def column(name: str) -> list[Tensor | None]:
        return [getattr(selection, name) for _, selection in parts]

    assign = column("assign")
    if any(value is not None for value in assign):
        assign = [_own_slots(selection, n) if value is None else value
                  for value, (_, selection) in zip(assign, parts, strict=True)]  # fmt: skip
    weight = column("weight")
    if any(value is not None for value in weight):
        weight = [sizes[rows] if value is None else value for value, (rows, _) in zip(weight, parts, strict=True)]
    keep = spread(column("keep"), (width,), -1)
    assert keep is not None
    return replace(
        first,
        keep=keep,
        assign=spread(assign, (n,), -1),
        weight=spread(weight, (n,), 0.0),
        cls_first=spread(column("cls_first"), (), False),
        mix=spread(column("mix"), (width, n), 0.0),
        protect=spread(column("protect"), (width,), False),
        ragged=True,
        ascending=all(selection.ascending for _, selection in parts),
    )


def _own_slots(selection: Selection, n: int) -> Tensor:
    """``assign`` of a selection that merges nothing."""
    keep = selection.keep
    slots = torch.arange(keep.shape[1], device=keep.device).expand_as(keep)
    return keep.new_full((keep.shape[0], n + 1), -1).scatter(1, keep.where(keep >= 0, n), slots)[:, :n]


def carried(name: str, value: Tensor, index: Tensor) -> Tensor:
    """A signal of one block ``[i, k, d]`` (attention: ``[i, ..., k]``) for the tokens ``index`` ``[i, k']``."""
    if name in _ON_LAST_AXIS:
        return value.gather(2, index[:, None].expand(-1, value.shape[1], -1))
    return gather_tokens(value, index)
