"""What a cache policy is told about the entries of one layer, or of several at once as if they were samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokcomp.runner.apply import gather_entries
from tokcomp.runner.tables import everywhere, filled, lengthened

if TYPE_CHECKING:
    from tokcomp.runner.cache import CompressedLayer

__all__ = ["EntryTables", "Kept", "column", "grouped"]


@dataclass(frozen=True)
class EntryTables:
    """Tables of the entries of layers that hold equally many, one layer's samples after the other's.

    Attributes:
        index: column of each entry in the uncompressed sequence ``[b, g, l]``.
        valid: ``[b, g, l]``. padded: whether any of it may be False.
        vision, protected: ``[b, g, l]`` bool. marked: whether any of the latter may be True.
        prompt, after: tokens of each sample's prompts, and those after the last image of its latest one ``[b]``.
        initial: vision entries that the prefill wrote ``[b]``.
        digest: ``[b]`` or None.
        known: what a view has looked up about these or earlier entries, see :class:`~tokcomp.CacheView`.
    """

    index: Tensor
    valid: Tensor
    padded: bool
    vision: Tensor
    protected: Tensor
    marked: bool
    prompt: Tensor
    after: Tensor
    initial: Tensor
    digest: Tensor | None
    known: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, layers: Sequence[CompressedLayer], *, marked: bool = True) -> EntryTables:
        """The tables of ``layers``, which hold equally many entries, all with padding or all without; ``marked``: whether any
        of them may be a key token's."""
        first = layers[0]
        request, heads, length = first.request, first.keys.shape[1], first.length
        index = _stacked([layer.index for layer in layers if layer.index is not None], first.keys.shape[0], heads)
        if index.shape[-1] < length:
            tail = torch.arange(first.seen - (length - index.shape[-1]), first.seen, device=index.device)
            index = torch.cat([index, tail.expand(*index.shape[:-1], -1)], dim=-1)
        valid, padded = everywhere(True, index), first.valid is not None
        if padded:
            masks = [layer.valid for layer in layers if layer.valid is not None]
            valid = filled(_stacked(masks, first.keys.shape[0], heads), length)
        rows = first.rows if len(layers) == 1 else torch.cat([layer.rows for layer in layers if layer.rows is not None])
        return cls(
            index=index,
            valid=valid,
            padded=padded,
            vision=_real(column(request.vision[rows], index), valid, padded),
            protected=_real(column(request.protected[rows], index), valid, padded)
            if marked
            else everywhere(False, index),
            marked=marked,
            prompt=request.lengths[rows],
            after=request.prompt.after[rows],
            initial=_initial(layers),
            digest=None if request.prompt.digest is None else request.prompt.digest[rows],
        )

    def latest(self, before: int, prompt: Tensor) -> EntryTables:
        """Those of the entries behind the first ``before``, all of the latest prompt, whose lengths are ``prompt`` ``[b]``."""
        names = "index", "valid", "vision", "protected"
        return replace(self, prompt=prompt, known={}, **{name: getattr(self, name)[..., before:] for name in names})

    def grown(self, length: int, seen: int) -> EntryTables:
        """Those of ``length`` entries, the last ones of the latest of ``seen`` tokens."""
        fresh = length - self.index.shape[-1]
        if fresh == 0:
            return self
        if fresh == 1:
            index = torch.nn.functional.pad(self.index, (0, 1), value=seen - 1)
        else:
            tail = torch.arange(seen - fresh, seen, device=self.index.device)
            index = torch.cat([self.index, tail.expand(*self.index.shape[:-1], -1)], dim=-1)
        valid = lengthened(self.valid, length, True) if self.padded else everywhere(True, index)
        protected = lengthened(self.protected, length, False) if self.marked else everywhere(False, index)
        vision = lengthened(self.vision, length, False)
        return replace(self, index=index, valid=valid, vision=vision, protected=protected)

    def taken(self, index: Tensor, valid: Tensor | None) -> EntryTables:
        """Those of the entries ``index`` ``[b, g, k]``, of which ``valid`` (None: all) are no padding."""
        real, padded = everywhere(True, index) if valid is None else valid, valid is not None
        vision, protected = _real(gather_entries(self.vision, index), real, padded), everywhere(False, index)
        if self.marked:
            protected = _real(gather_entries(self.protected, index), real, padded)
        return replace(self, index=gather_entries(self.index, index), valid=real, padded=padded, vision=vision,
                       protected=protected)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Kept:
    """What several layers were left with when a policy had been asked about them at once, side by side; it spares putting it
    together at the next step, unless something has happened to one of the layers since.

    Attributes:
        members: the objects that each layer was left with, by which it is told whether they are still the same.
        tables: of the entries that they held.
        memory: what the policy remembers of them ``[layers * b, g, l]``.
    """

    members: tuple[tuple[Any, ...], ...]
    tables: EntryTables
    memory: dict[str, Tensor]

    @classmethod
    def note(cls, layers: Sequence[CompressedLayer], tables: EntryTables, memory: dict[str, Tensor]) -> None:
        """This is what ``layers`` are left with now."""
        kept = cls(tuple(layer.objects() for layer in layers), tables, memory)
        for layer in layers:
            layer.kept = kept

    def holds(self, layers: Sequence[CompressedLayer]) -> bool:
        """Whether it is about these layers as they are."""
        return len(layers) == len(self.members) and all(
            layer.kept is self and all(map(is_, layer.objects(), member))
            for layer, member in zip(layers, self.members, strict=True)
        )


def grouped(layers: Sequence[CompressedLayer]) -> list[tuple[list[CompressedLayer], Kept | None]]:
    """Layers that hold equally many entries, with what they were left with side by side where that still holds."""
    first = layers[0].kept
    if first is not None and first.holds(layers):
        return [(list(layers), first)]
    left: dict[int, list[CompressedLayer]] = {}
    for layer in layers:
        left.setdefault(id(layer.kept or layer), []).append(layer)
    groups: dict[Any, list[tuple[list[CompressedLayer], Kept | None]]] = {}
    for members in left.values():
        kept = members[0].kept
        if kept is not None and kept.holds(members):
            groups.setdefault(members[0].likeness(), []).append((members, kept))
        else:
            for layer in members:
                groups.setdefault(layer.likeness(), []).append(([layer], None))
    return [found[0] if len(found) == 1 else ([layer for members, _ in found for layer in members], None)
            for found in groups.values()]  # fmt: skip


def _stacked(tables: Sequence[Tensor], batch: int, heads: int) -> Tensor:
    """Tables ``[b|1, g|1, m]`` of several layers as one ``[layers * b, g, m]``."""
    tables = [table.expand(batch, heads, -1) for table in tables]
    return tables[0] if len(tables) == 1 else torch.cat(tables)


def _real(table: Tensor, valid: Tensor, padded: bool) -> Tensor:
    return table & valid if padded else table


def _initial(layers: Sequence[CompressedLayer]) -> Tensor:
    """Vision entries that the prefill wrote of each row ``[layers * b]``."""
    found: dict[tuple[int, int], Tensor] = {}
    for layer in layers:
        name = id(layer.initial), id(layer.rows)
        if name not in found:
            found[name] = layer.initial[layer.rows]
    each = [found[id(layer.initial), id(layer.rows)] for layer in layers]
    return each[0] if len(each) == 1 else torch.cat(each)


def column(values: Tensor, index: Tensor) -> Tensor:
    """``values`` ``[b|1, l0]`` of the prompt at ``index`` ``[b|1, g, l]``; False for tokens that came after the prompt."""
    index = index.expand(max(index.shape[0], values.shape[0]), -1, -1)
    flat = index.flatten(1)
    inside = flat < values.shape[1]
    picked = values.expand(flat.shape[0], -1).gather(1, flat.clamp(max=values.shape[1] - 1)) & inside
    return picked.view(index.shape)
