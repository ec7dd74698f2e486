"""Does what a cache policy selected: entries leave, are merged, or are hidden from the next step."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from tokcomp.errors import TokcompError
from tokcomp.ops.merging import apply_selection
from tokcomp.runner.apply import gather_entries
from tokcomp.runner.cache import CompressedLayer
from tokcomp.runner.entries import EntryTables, Kept
from tokcomp.runner.numbering import Numbering, Turn
from tokcomp.runner.passes import Pass
from tokcomp.runner.stacking import gathered
from tokcomp.stages import CachePolicy
from tokcomp.types import Selection, Signal, debugging

__all__ = ["Leaving", "share_out"]

_KIN = count(1)


class Leaving:
    """Applies selections of cache policies.

    Args:
        numbering: of the decoder's cache. ``packing``: layers whose entries may be packed.
    """

    def __init__(self, numbering: Numbering, packing: frozenset[int]) -> None:
        self.numbering, self.packing = numbering, packing

    def apply(self, run: Pass, policy: CachePolicy, layers: list[CompressedLayer], selection: Selection, tables: EntryTables,
              memory: dict[str, Tensor], keys: Tensor | None = None) -> None:  # fmt: skip
        """Do what ``policy`` selected of the entries of ``layers``, which hold equally many.

        Args:
            tables: of the entries. ``memory``: what the policy remembers of them.
            keys: of all layers ``[layers * b, g, l, d]``, where they have been laid side by side.
        """
        length = layers[0].length
        keep = selection.keep.to(tables.index.device)
        if keep.dim() == 2:
            keep = keep[:, None].expand(-1, tables.index.shape[1], -1)
        keep = keep.expand(tables.index.shape[0], -1, -1)
        if debugging():
            self._check(length, policy, replace(selection, keep=keep))
        if tables.padded:
            keep = keep.masked_fill(~(gather_entries(tables.valid, keep.clamp(min=0)) & (keep >= 0)), -1)
        if policy.hides():
            _hide(layers, keep, memory)
            if not run.prefill:
                Kept.note(layers, tables, memory)
            return
        ragged = selection.ragged or tables.padded
        self._evict(run, policy, layers, replace(selection, keep=keep, ragged=ragged), tables, memory, keys,
                    per_head=selection.keep.dim() == 3)  # fmt: skip

    def _evict(self, run: Pass, policy: CachePolicy, layers: list[CompressedLayer], selection: Selection, tables: EntryTables,
               memory: dict[str, Tensor], keys: Tensor | None, *, per_head: bool) -> None:  # fmt: skip
        """Let entries leave; ``keep`` is that of every layer and head ``[layers * b, g, k]``."""
        keep, length = selection.keep, layers[0].length
        index = keep.clamp(min=0) if selection.ragged else keep
        all_stay = keep.shape[2] == length and selection.ascending and not selection.ragged
        left = tables if all_stay else tables.taken(index, keep >= 0 if selection.ragged else None)
        memory = {name: gather_entries(value, index) for name, value in memory.items()}
        sides: Any = [(layer.keys, layer.values) for layer in layers]
        if not all_stay:
            own_keys, own_values = zip(*sides, strict=True)
            sides = zip(gathered(own_keys, index, keys), gathered(own_values, index), strict=True)
        # Where nothing of its own decides for a layer, layers that held the same tokens still do.
        alike = policy.layers_alike and not per_head and Signal.RECEIVED_ATTENTION not in policy.signals()
        b, moves = keep.shape[0] // len(layers), policy.positions != "keep"
        valid = left.valid.split(b) if selection.ragged else None
        turns: list[Turn] = []
        for position, (layer, (k, v), columns) in enumerate(zip(layers, sides, left.index.split(b), strict=True)):
            before = self.numbering.before(layer, policy, run.memo) if moves else None
            merged = None if selection.assign is None else self._merged(layer, policy, selection, tables)
            if not all_stay:
                kin = run.memo.setdefault(("kin", layer.kin), -next(_KIN)) if alike and layer.kin else None
                layer.evict(k, v, columns, None if valid is None else valid[position], kin)
            if merged is not None:
                layer.keys, layer.values = merged
            if moves:
                used = _part(tables.valid, position, layers) if tables.padded else None
                mine = _part(keep, position, layers)
                turns += self.numbering.number_anew(layer, policy, mine, before, used, run.memo)
        share_out(layers, memory)
        self.numbering.turn(turns)
        if run.request.reads is not None and selection.ragged:
            for layer, counts in zip(layers, (keep < 0).sum(dim=2).split(b), strict=True):
                layer.count_padding(counts)
        for layer in layers if self.packing else ():
            if layer.number in self.packing:
                layer.pack()
        if not run.prefill:
            Kept.note(layers, left, memory)

    @staticmethod
    def _merged(layer: CompressedLayer, policy: CachePolicy, selection: Selection,
                tables: EntryTables) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The slots' keys and values ``[b, g, k, d]``."""
        assert selection.assign is not None
        shape = tables.index.shape
        assign = (selection.assign[:, None] if selection.assign.dim() == 2 else selection.assign).expand(shape)
        weight = selection.weight
        if weight is not None:
            weight = (weight[:, None] if weight.dim() == 2 else weight).expand(shape)
        if tables.padded:
            assign = assign.masked_fill(~tables.valid, -1)
        selection = replace(selection, assign=assign, weight=weight)
        sizes = torch.ones(shape, device=layer.keys.device)
        keys = gather_entries(layer.keys, selection.keep.clamp(min=0))
        if policy.merges_keys():
            keys, _ = apply_selection(layer.keys, sizes, selection)
        return keys, apply_selection(layer.values, sizes, selection)[0]

    def _check(self, length: int, policy: CachePolicy, selection: Selection) -> None:
        try:
            selection.check(length, batch_size=selection.keep.shape[0])
        except (TypeError, ValueError) as error:
            raise TokcompError(f"cache policy '{policy.name}' returned a wrong selection: {error}") from error


def share_out(layers: list[CompressedLayer], memory: dict[str, Tensor]) -> None:
    """Let each layer hold its rows of what the policy remembers of all ``layers``."""
    b = layers[0].keys.shape[0]
    own = zip(*(table.split(b) for table in memory.values()), strict=True) if memory else [()] * len(layers)
    for layer, tables in zip(layers, own, strict=True):
        layer.memory = dict(zip(memory, tables, strict=True))


def _hide(layers: list[CompressedLayer], keep: Tensor, memory: dict[str, Tensor]) -> None:
    """Nothing leaves; the coming step sees what was selected (and itself)."""
    length = layers[0].length
    seen = torch.zeros(*keep.shape[:2], length + 1, dtype=torch.bool, device=keep.device)
    seen = seen.scatter(2, keep.where(keep >= 0, length), True)[..., :-1]
    for position, layer in enumerate(layers):
        layer.visible = _part(seen, position, layers)
    share_out(layers, memory)


def _part(table: Tensor, position: int, layers: list[CompressedLayer]) -> Tensor:
    """One layer's rows of a table of all ``layers``."""
    if len(layers) == 1:
        return table
    batch = table.shape[0] // len(layers)
    return table[position * batch : (position + 1) * batch]
