"""A later pass: what each layer is given, which has a cache of its own length.

It is found for all layers at once, before the first of them runs; layers that hold the same tokens, or equally many, share the
work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokcomp.ops.packed import Packed
from tokcomp.runner.entries import EntryTables, Kept
from tokcomp.runner.masks import Visibility
from tokcomp.runner.tables import appended, filled
from tokcomp.runner.turns import shown

if TYPE_CHECKING:
    from tokcomp.runner.cache import CompressedLayer
    from tokcomp.runner.passes import Pass

__all__ = ["Share", "shares", "tables_of"]


Share = tuple[dict[str, Any], Visibility, Packed | None]
"""What one layer is given in a later pass: arguments of its call, which keys it may see, and packed entries, which its attention
has to read beside the cache's tensors."""


def shares(
    run: Pass, layers: Sequence[CompressedLayer], hidden: Tensor, all_layers: Sequence[CompressedLayer]
) -> dict[int, Share]:
    """The shares of ``layers`` in a pass of the tokens ``hidden`` ``[b, t, d]``; ``all_layers``: those on this device."""
    found: dict[int, Share] = {}
    made: dict[tuple[int, int, str], dict[str, Any]] = {}  # by ids of objects that this pass holds on to
    changes: dict[str, Any] = {}
    before: tuple[Any, ...] = ()
    for layer, (mask, sees) in zip(layers, _masks(run, layers, hidden), strict=True):
        offset = layer.offset
        moved = offset is not run.first_offset
        table = run.decoder.table(layer.number) if moved else ""
        if not before or mask is not before[0] or offset is not before[1] or table != before[2]:
            before, key = (mask, offset, table), (id(mask), id(offset), table)
            if key not in made:
                made[key] = {"attention_mask": mask}
                if moved:
                    made[key]["position_ids"] = None
                    made[key]["position_embeddings"] = _numbering(run, all_layers, layer, hidden)
            changes = made[key]
        found[layer.number] = changes, sees, layer.packed
    return found


def tables_of(run: Pass, kept: Kept, first: CompressedLayer, fresh: int = 0) -> EntryTables:
    """The tables of the layers that ``kept`` holds, of which ``first`` is one, when ``fresh`` more entries have come."""
    name = "kept", id(kept), first.length + fresh
    if name not in run.memo:
        run.memo[name] = kept.tables.grown(first.length + fresh, first.seen + fresh)
    tables: EntryTables = run.memo[name]
    return tables


def _masks(run: Pass, layers: Sequence[CompressedLayer], hidden: Tensor) -> list[tuple[Any, Visibility]]:
    """The mask of each layer and what it says."""
    rows = hidden.shape[1]
    alone = rows > 1 or run.blocks is not None or run.follow.valid is not None
    found: list[tuple[Any, Visibility]] = []
    plain: dict[int, tuple[None, Visibility]] = {}
    together: dict[Any, list[int]] = {}
    for position, layer in enumerate(layers):
        total = layer.length + rows
        if alone or (layer.window is not None and _reach(layer, rows) is not None):
            found.append(_mask(run, layer, total, hidden))
            continue
        if layer.packed is not None or (layer.valid is None and layer.visible is None):
            if total not in plain:
                plain[total] = None, Visibility(total)
            found.append(plain[total])
            continue
        kin = None if layer.visible is not None else layer.kin
        shapes = [None if table is None else table.shape for table in (layer.valid, layer.visible)]
        together.setdefault((total, kin, *shapes), []).append(position)
        found.append((None, Visibility(total)))
    for (total, kin, *_), positions in together.items():
        members = [layers[position] for position in positions]
        same = kin is not None
        valid = _shown(run, members[:1] if same else members, hidden.shape[0], total)
        sees = Visibility(total, valid)
        mask = run.mask_for(hidden, sees, kin=("together", positions[0]), dtype=members[0].keys.dtype)
        if same:
            for position in positions:
                found[position] = mask, sees
        else:
            b = hidden.shape[0]
            for position, own, seen in zip(positions, mask.split(b), valid.split(b), strict=True):
                found[position] = own, Visibility(total, seen)
    return found


def _shown(run: Pass, layers: Sequence[CompressedLayer], batch: int, total: int) -> Tensor:
    """Which entries of ``layers`` the coming step may see, one layer's samples after the other's
    ``[layers * batch, 1|g, total]``."""
    first = layers[0]
    if first.visible is None and first.kept is not None and first.kept.holds(layers):
        return tables_of(run, first.kept, first, total - first.length).valid
    valid = _side_by_side([layer.valid for layer in layers], batch, total)
    visible = _side_by_side([layer.visible for layer in layers], batch, total)
    if valid is None or visible is None:
        found = visible if valid is None else valid
        assert found is not None
        return found
    return visible & valid


def _side_by_side(tables: Sequence[Tensor | None], batch: int, length: int) -> Tensor | None:
    given = [table.expand(batch, -1, -1) for table in tables if table is not None]
    return None if not given else filled(given[0] if len(given) == 1 else torch.cat(given), length)


def _mask(run: Pass, layer: CompressedLayer, total: int, hidden: Tensor) -> tuple[Any, Visibility]:
    """The mask of a layer with more to it than the padding of its entries, and what it says."""
    valid, rows = shown(layer), hidden.shape[1]
    if run.follow.valid is not None:
        held = hidden.new_ones(1, 1, layer.length, dtype=torch.bool) if valid is None else valid
        valid = appended(held, run.follow.valid[:, None])
    valid = None if valid is None else filled(valid, total)
    window, columns, blocks = _reach(layer, rows), None, None
    if window is not None:
        index = layer.full_index()
        fresh = torch.arange(layer.seen, layer.seen + rows, device=index.device)
        columns = torch.cat([index, fresh.expand(*index.shape[:2], rows)], dim=-1)
    if run.blocks is not None:
        blocks = torch.nn.functional.pad(run.blocks, (total - rows, 0), value=-1)
    sees = Visibility(total, valid, window, columns, blocks, run.through)
    if layer.packed is not None:
        return None, sees  # what is seen follows from the entries themselves
    kin = None if layer.visible is not None else layer.kin
    return run.mask_for(hidden, sees, kin=("layer", layer.number) if kin is None else kin,
                    dtype=layer.keys.dtype), sees  # fmt: skip


def _reach(layer: CompressedLayer, rows: int) -> int | None:
    """The layer's window; None where it reaches over everything, or the cache holds just what it reaches over."""
    window = layer.window
    whole = window is None or layer.seen + rows <= window or (rows == 1 and layer.dense)
    return None if whole else window


def _numbering(run: Pass, layers: Sequence[CompressedLayer], layer: CompressedLayer, hidden: Tensor) -> Any:
    """Rotary tables of a layer that numbers its tokens in its own way.

    The tables of all such layers are made together: one by one they would cost more than a small model's step.
    """
    tables = run.memo.setdefault(("numbering", run.decoder.table(layer.number)), {})
    if id(layer.offset) not in tables:
        offsets = {id(each.offset): each.offset for each in layers if each.offset is not run.first_offset}
        b = hidden.shape[0]
        lags = [run.positions.new_zeros(b) if lag is None else lag.expand(b) for lag in offsets.values()]
        planes = run.positions.shape[:-2]
        positions = run.positions.expand(*planes, b, -1).unsqueeze(-3)
        own = positions - torch.stack(lags)[..., None]  # ([p,] numberings, b, l)
        cos, sin = run.decoder.rotary(hidden, own.flatten(-3, -2), layer.number)
        each = (len(lags), b)
        rows = zip(offsets.values(), cos.unflatten(0, each), sin.unflatten(0, each), strict=True)
        # The key is an id: keep the object that it names.
        tables.update({id(lag): (lag, (c, s)) for lag, c, s in rows})
    return tables[id(layer.offset)][1]
