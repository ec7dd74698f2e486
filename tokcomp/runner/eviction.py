"""Shows a cache policy its view and applies what it selects."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from tokcomp.errors import CompatibilityError, TokcompError
from tokcomp.models.adapter import Decoder
from tokcomp.ops.merging import apply_selection
from tokcomp.plugin_signals import attended, extra_names
from tokcomp.runner.apply import gather_entries, widened
from tokcomp.runner.cache import CompressedLayer
from tokcomp.runner.entries import EntryTables
from tokcomp.runner.numbering import Numbering, Turn
from tokcomp.runner.observing import OBSERVED, observe
from tokcomp.runner.passes import Observed, Pass
from tokcomp.runner.showing import cache_view, joined
from tokcomp.runner.stacking import fits, gathered
from tokcomp.runner.tables import filled
from tokcomp.stages import CachePolicy
from tokcomp.types import CacheView, Selection, Signal, debugging

__all__ = ["Evictor"]

_KIN = count(1)
_TOGETHER, _TOGETHER_BYTES = 4, 64 * 2**20
"""Layers of a prefill that a policy is asked about at once, and what their whole entries may take until then."""


class Evictor:
    """Runs a cache policy on the layers that it acts on."""

    def __init__(self, policy: CachePolicy, decoder: Decoder, *, marked: bool = True) -> None:
        self.marked = marked  # whether key tokens may be marked
        depth = len(decoder.layers)
        self.name, self.decoder, self.numbering = policy.name, decoder, Numbering(decoder)
        found = {number: policy.of_layer(number, depth) for number in range(depth)}
        self.policies = {number: one for number, one in found.items() if one is not None}
        mixed = [one for one in self.policies.values() if one.layers_alike and extra_names(one.signals())]
        if mixed:
            raise CompatibilityError(
                f"cache policy '{mixed[0].name}' declares layers_alike, and the plug-in's signal "
                f"'{min(extra_names(mixed[0].signals()))}' is of one layer: set layers_alike = False"
            )
        self.decodes = any(one.decodes() for one in self.policies.values())
        """Whether any layer is acted on after the prefill."""
        self._packing = {
            number for number, one in self.policies.items()
            if one.packs() and decoder.window(number) is None and not decoder.logits(number)
        }  # fmt: skip
        self.counting = next((one.name for one in self.policies.values() if one.counts_tokens), None)
        """A policy by whose rule all samples have equally many tokens behind the prompt, or None."""

    def observes(self, number: int) -> bool:
        """Whether a layer's attention is to be looked at."""
        needs = self.policies[number].signals() if number in self.policies else frozenset()
        return bool(OBSERVED & needs) or bool(attended(needs, "cache"))

    def observe(self, run: Pass, number: int, query: Tensor, key: Tensor, scale: float,
                **logits: Any) -> None:  # fmt: skip
        """Note what the layer's policy wants to see of the attention that is about to run."""
        policy = self.policies[number]
        plain = query.shape[2] == 1 and run.sees.valid is None and self.decoder.window(number) is None and not logits
        if not run.prefill and plain and policy.layers_alike and policy.decodes() and fits(key, len(self.policies)):
            run.observed = Observed(asked=(query, scale))
            return
        if self.decoder.inv_freq(number) is None:
            run.rotary = None  # a layer that does not rotate its queries
        interleaved = self.decoder.interleaved()
        run.observed = observe(run, policy, query, key, scale, layer=number, interleaved=interleaved, **logits)

    def packs(self, number: int) -> bool:
        """Whether a layer's entries may be packed, so that its attention has to be ours: a softmax over all entries."""
        return number in self._packing

    def after_layer(self, run: Pass, layer: CompressedLayer) -> None:
        """Act on a layer that has just run; what can wait until all layers have run acts in :meth:`after_pass`."""
        policy = self.policies[layer.number]
        observed, run.observed = run.observed or Observed(), None
        if run.prefill and not policy.decodes():
            layer.memory = {}  # what it noted of an earlier prompt
        if run.prefill and Signal.SURVEY in policy.signals():
            view = self._view(policy, [layer], self._tables(run, [layer], self._before(run, policy, layer)), observed)
            run.surveyed[layer.number] = policy.survey(view)
            layer.memory = dict(view.memory)
        elif run.prefill and not self._waits(policy):
            if not policy.layers_alike or policy.signals() & {Signal.ATTENTION_ROWS, Signal.QUERIES}:
                self._act(run, policy, [layer], observed)
                return
            run.stepped.append((layer, observed))
            waiting, held = len(run.stepped), sum(each.nbytes for each in layer.tensors())
            if waiting == _TOGETHER or (waiting + 1) * held > _TOGETHER_BYTES:
                self._act_together(run)
        elif not run.prefill and policy.decodes():
            layer.visible = None
            if policy.layers_alike:
                run.stepped.append((layer, observed))
            else:
                self._act(run, policy, [layer], observed)
        elif run.follow.touches and self.packs(layer.number):
            layer.pack()

    def after_pass(self, run: Pass, layers: list[CompressedLayer]) -> None:
        """Act on the layers that waited for the end of the pass."""
        final = None
        if run.prefill:
            waiting = [(layers[number], Observed()) for number, policy in self.policies.items() if self._waits(policy)]
            run.stepped += waiting
            if waiting and run.sequence is not None:
                sequence = run.sequence
                real = torch.ones_like(sequence.index, dtype=torch.bool) if sequence.valid is None else sequence.valid
                final = torch.zeros_like(run.request.prompt.valid).scatter(1, sequence.index, real)
        self._act_together(run, final)

    def _act_together(self, run: Pass, final: Tensor | None = None) -> None:
        """Act on the layers that wait; on those that hold equally many entries at once, where the policy does not tell them
        apart."""
        stepped, run.stepped = run.stepped, []
        groups: dict[Any, list[tuple[CompressedLayer, Observed]]] = {}
        for layer, observed in stepped:
            policy = self.policies[layer.number]
            key = (policy, layer.likeness()) if policy.layers_alike else layer.number
            groups.setdefault(key, []).append((layer, observed))
        for group in groups.values():
            members = [layer for layer, _ in group]
            self._act(run, self.policies[members[0].number], members, joined(group), final)

    @staticmethod
    def _waits(policy: CachePolicy) -> bool:
        return bool({Signal.FINAL_TOKENS, Signal.SURVEY} & policy.signals())

    def _surveyed(self, run: Pass, policy: CachePolicy) -> Tensor:
        """What a policy found in each layer ``[b, depth]``; NaN where it does not act."""
        own = [number for number, other in self.policies.items() if other is policy]
        blank = torch.full_like(run.surveyed[own[0]], torch.nan)
        found = {number: run.surveyed[number].to(blank.device) for number in own}
        return torch.stack([found.get(number, blank) for number in range(len(self.decoder.layers))], dim=1)

    def _act(self, run: Pass, policy: CachePolicy, layers: list[CompressedLayer], observed: Observed,
             final: Tensor | None = None) -> None:  # fmt: skip
        """Ask the policy about layers that hold equally many entries, and do what it selects."""
        before, tables = self._before(run, policy, layers[0]), self._tables(run, layers)
        waited = run.prefill and Signal.SURVEY in policy.signals()
        surveyed = self._surveyed(run, policy) if waited else None
        view = self._view(policy, layers, self._tables(run, layers, before), observed, final, surveyed)
        selection = (policy.after_prefill if run.prefill else policy.after_step)(view)
        memory = {} if before else view.memory
        if selection is not None:
            self._apply(run, policy, layers, widened(selection, before), tables, dict(memory))
            return
        for position, layer in enumerate(layers):
            layer.memory = {name: _part(value, position, layers) for name, value in memory.items()}

    def _view(self, policy: CachePolicy, layers: list[CompressedLayer], tables: EntryTables, observed: Observed,
              final: Tensor | None = None, surveyed: Tensor | None = None) -> CacheView:  # fmt: skip
        found = {"final": final, "surveyed": surveyed, "marked": self.marked}
        return cache_view(self.numbering, policy, layers, tables, observed, **found)  # type: ignore[arg-type]

    @staticmethod
    def _before(run: Pass, policy: CachePolicy, layer: CompressedLayer) -> int:
        """Entries of earlier turns that a policy does not see: one that acts once acts once on every turn's prompt."""
        return layer.before if run.prefill and not policy.decodes() else 0

    @staticmethod
    def _tables(run: Pass, layers: list[CompressedLayer], before: int = 0) -> EntryTables:
        """The tables of the entries behind the first ``before``; in a prefill, layers that hold the same tokens share them."""
        one, several = layers[0], {layer.kin for layer in layers}
        if not run.prefill or len(several) > 1 or one.kin is None:
            tables = EntryTables.of(layers)
        else:
            key = ("entries", one.kin, one.length, len(layers))
            tables = run.memo[key] = run.memo[key] if key in run.memo else EntryTables.of(layers)
        return (
            tables if before == 0 else tables.latest(before, one.request.prompt.lengths[one.rows].repeat(len(layers)))
        )

    def _apply(self, run: Pass, policy: CachePolicy, layers: list[CompressedLayer], selection: Selection,
               tables: EntryTables, memory: dict[str, Tensor]) -> None:  # fmt: skip
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
            return
        ragged = selection.ragged or tables.padded
        self._evict(run, policy, layers, replace(selection, keep=keep, ragged=ragged), tables, memory,
                    per_head=selection.keep.dim() == 3)  # fmt: skip

    def _evict(self, run: Pass, policy: CachePolicy, layers: list[CompressedLayer], selection: Selection,
               tables: EntryTables, memory: dict[str, Tensor], *, per_head: bool) -> None:  # fmt: skip
        """Let entries leave; ``keep`` is that of every layer and head ``[layers * b, g, k]``."""
        keep, length = selection.keep, layers[0].length
        index = keep.clamp(min=0) if selection.ragged else keep
        valid = keep >= 0 if selection.ragged else None
        all_stay = keep.shape[2] == length and selection.ascending and not selection.ragged
        columns = gather_entries(tables.index, index)
        memory = {name: gather_entries(value, index) for name, value in memory.items()}
        # Where nothing of its own decides for a layer, layers that held the same tokens still do.
        alike = policy.layers_alike and not per_head and Signal.RECEIVED_ATTENTION not in policy.signals()
        left: Any = [(layer.keys, layer.values) for layer in layers]
        if not all_stay:
            left = zip(*(gathered(each, index) for each in zip(*left, strict=True)), strict=True)
        turns: list[Turn] = []
        b = keep.shape[0] // len(layers)
        own = zip(keep.split(b), columns.split(b), *(table.split(b) for table in memory.values()), strict=True)
        for position, (layer, (keys, values), (mine, stand, *kept)) in enumerate(zip(layers, left, own, strict=True)):
            before = self.numbering.before(layer, policy, run.memo)
            used = None if layer.valid is None else filled(layer.valid, length).expand(-1, mine.shape[1], -1)
            layer.memory = dict(zip(memory, kept, strict=True))
            merged = None if selection.assign is None else self._merged(layer, policy, selection, tables)
            if not all_stay:
                kin = run.memo.setdefault(("kin", layer.kin), -next(_KIN)) if alike and layer.kin else None
                layer.evict(keys, values, stand, None if valid is None else _part(valid, position, layers), kin)
            if merged is not None:
                layer.keys, layer.values = merged
            turns += self.numbering.number_anew(layer, policy, mine, before, used, run.memo)
        self.numbering.turn(turns)
        for layer in layers if self._packing else ():
            if self.packs(layer.number):
                layer.pack()

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


def _hide(layers: list[CompressedLayer], keep: Tensor, memory: dict[str, Tensor]) -> None:
    """Nothing leaves; the coming step sees what was selected (and itself)."""
    length = layers[0].length
    seen = torch.zeros(*keep.shape[:2], length + 1, dtype=torch.bool, device=keep.device)
    seen = seen.scatter(2, keep.where(keep >= 0, length), True)[..., :-1]
    for position, layer in enumerate(layers):
        layer.visible = _part(seen, position, layers)
        layer.memory = {name: _part(value, position, layers) for name, value in memory.items()}


def _part(table: Tensor, position: int, layers: list[CompressedLayer]) -> Tensor:
    """One layer's rows of a table of all ``layers``."""
    if len(layers) == 1:
        return table
    batch = table.shape[0] // len(layers)
    return table[position * batch : (position + 1) * batch]
