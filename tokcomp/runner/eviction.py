"""Shows a cache policy its view and applies what it selects."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokcomp.errors import CompatibilityError
from tokcomp.models.adapter import Decoder
from tokcomp.plugin_signals import attended, extra_names
from tokcomp.runner.apply import refuse_other, widened
from tokcomp.runner.cache import CompressedLayer
from tokcomp.runner.entries import EntryTables, Kept, grouped
from tokcomp.runner.leaving import Leaving, share_out
from tokcomp.runner.numbering import Numbering
from tokcomp.runner.observing import OBSERVED, observe
from tokcomp.runner.passes import Observed, Pass
from tokcomp.runner.showing import cache_view, joined, remembered, seen_together
from tokcomp.runner.stacking import fits
from tokcomp.runner.steps import tables_of
from tokcomp.stages import CachePolicy
from tokcomp.types import CacheView, Signal

__all__ = ["Evictor"]

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
        deciding = {number: one for number, one in self.policies.items() if one.decodes()}
        self.decodes = bool(deciding)
        """Whether any layer is acted on after the prefill."""
        self._acting = frozenset(deciding)
        self._deciding = _by_policy(deciding)
        self._together = {
            number for number, one in deciding.items() if one.layers_alike and decoder.window(number) is None
        }
        self.packing = frozenset(
            number
            for number, one in self.policies.items()
            if one.packs() and decoder.window(number) is None and not decoder.logits(number)
        )
        """Layers whose entries may be packed, so that their attention has to be ours: a softmax over all entries."""
        self.leaving = Leaving(self.numbering, self.packing)
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
        if not run.prefill:
            if number not in self._acting:
                return
            together = number in self._together and query.shape[2] == 1 and not logits
            if together and (run.sees.valid is None or not policy.hides()) and fits(key, len(self.policies)):
                run.asked[number] = query, scale
                return
        if self.decoder.inv_freq(number) is None:
            run.rotary = None  # a layer that does not rotate its queries
        interleaved = self.decoder.interleaved()
        observed = observe(run, policy, query, key, scale, layer=number, interleaved=interleaved, **logits)
        if run.prefill:
            run.observed = observed
        else:
            run.noticed[number] = observed

    def after_layer(self, run: Pass, layer: CompressedLayer) -> None:
        """Act on a layer that has just run; what can wait until all layers have run acts in :meth:`after_pass`."""
        policy = self.policies[layer.number]
        if not run.prefill:
            if run.follow.touches and layer.number in self.packing:
                layer.pack()
            return
        observed, run.observed = run.observed or Observed(), None
        if not policy.decodes():
            layer.memory = {}  # what it noted of an earlier prompt
        if Signal.SURVEY in policy.signals():
            view = self._view(policy, [layer], self._tables(run, [layer], self._before(policy, layer)), observed)
            run.surveyed[layer.number] = policy.survey(view)
            layer.memory = dict(view.memory)
        elif not self._waits(policy):
            if not policy.layers_alike or policy.signals() & {Signal.ATTENTION_ROWS, Signal.QUERIES}:
                self._act(run, policy, [layer], observed)
                return
            run.stepped.append((layer, observed))
            waiting, held = len(run.stepped), sum(each.nbytes for each in layer.tensors())
            if waiting == _TOGETHER or (waiting + 1) * held > _TOGETHER_BYTES:
                self._act_together(run)

    def after_pass(self, run: Pass, layers: list[CompressedLayer]) -> None:
        """Act on the layers that waited for the end of the pass."""
        if not run.prefill:
            self._step(run, layers)
            return
        final = None
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
        """Ask the policy about layers that hold equally many entries after a prefill, and do what it selects."""
        before, tables = self._before(policy, layers[0]), self._tables(run, layers)
        surveyed = self._surveyed(run, policy) if Signal.SURVEY in policy.signals() else None
        shown = self._tables(run, layers, before) if before else tables
        view = self._view(policy, layers, shown, observed, final, surveyed)
        selection = policy.after_prefill(view)
        memory = {} if before else dict(view.memory)
        if selection is None:
            share_out(layers, memory)
        else:
            refuse_other(selection, view.valid.shape[0], who=f"cache policy '{policy.name}'", dims=(2, 3))
            self.leaving.apply(run, policy, layers, widened(selection, before), tables, memory)

    def _step(self, run: Pass, layers: list[CompressedLayer]) -> None:
        """Act on all layers after a later pass."""
        for policy, numbers in self._deciding:
            members = [layers[number] for number in numbers]
            for layer in members:
                layer.visible = None
            for group, kept in grouped(members) if policy.layers_alike else [([layer], None) for layer in members]:
                self._step_of(run, policy, group, kept)

    def _step_of(self, run: Pass, policy: CachePolicy, layers: list[CompressedLayer], kept: Kept | None) -> None:
        """Ask the policy about layers that hold equally many entries after a later pass, and do what it selects."""
        if kept is None:
            tables, before = EntryTables.of(layers, marked=self.marked), remembered(layers)
        else:
            tables, before = tables_of(run, kept, layers[0]), kept.memory
        observed, keys = seen_together(run, layers, tables)
        view = cache_view(self.numbering, policy, layers, tables, observed, before, marked=self.marked)
        selection, memory = policy.after_step(view), dict(view.memory)
        if selection is not None:
            refuse_other(selection, view.valid.shape[0], who=f"cache policy '{policy.name}'", dims=(2, 3))
            self.leaving.apply(run, policy, layers, selection, tables, memory, keys)
            return
        share_out(layers, memory)
        Kept.note(layers, tables, memory)

    def _view(self, policy: CachePolicy, layers: list[CompressedLayer], tables: EntryTables, observed: Observed,
              final: Tensor | None = None, surveyed: Tensor | None = None) -> CacheView:  # fmt: skip
        return cache_view(self.numbering, policy, layers, tables, observed, remembered(layers), marked=self.marked,
                          final=final, surveyed=surveyed)  # fmt: skip

    @staticmethod
    def _before(policy: CachePolicy, layer: CompressedLayer) -> int:
        """Entries of earlier turns that a policy does not see: one that acts once acts once on every turn's prompt."""
        return 0 if policy.decodes() else layer.before

    def _tables(self, run: Pass, layers: list[CompressedLayer], before: int = 0) -> EntryTables:
        """The tables of the entries behind the first ``before``; layers that hold the same tokens share them."""
        one, several = layers[0], {layer.kin for layer in layers}
        key = ("entries", one.kin, one.length, len(layers))
        tables = run.memo.get(key) if len(several) == 1 and one.kin is not None else None
        if tables is None:
            tables = run.memo[key] = EntryTables.of(layers, marked=self.marked)
        return (
            tables if before == 0 else tables.latest(before, one.request.prompt.lengths[one.rows].repeat(len(layers)))
        )


def _by_policy(policies: dict[int, CachePolicy]) -> list[tuple[CachePolicy, list[int]]]:
    """Each policy with the layers that it acts on."""
    found: dict[CachePolicy, list[int]] = {}
    for number, one in policies.items():
        found.setdefault(one, []).append(number)
    return list(found.items())
