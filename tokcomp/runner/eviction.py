"""Shows a cache policy its view and applies what it selects."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokcomp.errors import TokcompError
from tokcomp.models.adapter import Decoder
from tokcomp.ops.rotary import rerotate
from tokcomp.runner.apply import gather_entries
from tokcomp.runner.cache import CompressedLayer, filled
from tokcomp.runner.observing import received_attention
from tokcomp.runner.passes import Pass
from tokcomp.runner.positions import close_up
from tokcomp.stages import CachePolicy
from tokcomp.types import CacheView, Selection, Signal, debugging

__all__ = ["Evictor"]


class Evictor:
    """Runs a cache policy on the layers that it acts on."""

    def __init__(self, policy: CachePolicy, decoder: Decoder) -> None:
        depth = len(decoder.layers)
        self.name, self.decoder = policy.name, decoder
        found = {number: policy.of_layer(number, depth) for number in range(depth)}
        self.policies = {number: one for number, one in found.items() if one is not None}
        self.decodes = any(one.decodes() for one in self.policies.values())
        """Whether any layer is acted on after the prefill."""

    def observes(self, number: int) -> bool:
        """Whether a layer's attention is to be looked at."""
        return number in self.policies and Signal.RECEIVED_ATTENTION in self.policies[number].signals()

    def observe(self, run: Pass, number: int, query: Tensor, key: Tensor, scale: float,
                **logits: Any) -> None:  # fmt: skip
        """Note what the layer's policy wants to see of the attention that is about to run."""
        run.received = received_attention(run, self.policies[number], query, key, scale, **logits)

    def packs(self, number: int) -> bool:
        """Whether a layer's entries may be packed, so that its attention has to be ours: a softmax over all entries."""
        plain = self.decoder.window(number) is None and not self.decoder.logits(number)
        return plain and number in self.policies and self.policies[number].packs()

    def after_layer(self, run: Pass, layer: CompressedLayer) -> None:
        """Act on a layer that has just run; a policy that wants to know how the prefill ends acts in :meth:`after_pass`."""
        policy = self.policies[layer.number]
        received, run.received = run.received, None
        if run.prefill and not self._waits(policy):
            self._apply(layer, policy, policy.after_prefill(self._view(layer, policy, received)))
        elif not run.prefill and policy.decodes():
            layer.visible = None
            self._apply(layer, policy, policy.after_step(self._view(layer, policy, received)))

    def after_pass(self, run: Pass, layers: list[CompressedLayer]) -> None:
        """Act on the layers whose policy waited for the end of the prefill."""
        waiting = [number for number, policy in self.policies.items() if self._waits(policy)]
        if not run.prefill or run.sequence is None or not waiting:
            return
        sequence = run.sequence
        real = torch.ones_like(sequence.index, dtype=torch.bool) if sequence.valid is None else sequence.valid
        final = torch.zeros_like(run.request.prompt.valid).scatter(1, sequence.index, real)
        for number in waiting:
            policy = self.policies[number]
            self._apply(layers[number], policy, policy.after_prefill(self._view(layers[number], policy, None, final)))

    @staticmethod
    def _waits(policy: CachePolicy) -> bool:
        return Signal.FINAL_TOKENS in policy.signals()

    def _view(self, layer: CompressedLayer, policy: CachePolicy, received: Tensor | None,
              final: Tensor | None = None) -> CacheView:  # fmt: skip
        """What the policy sees; ``final`` ``[b, l0]``: the prompt's columns that were alive after the last layer."""
        prompt, heads, length = layer.request.prompt, layer.keys.shape[1], layer.length
        rows = layer.rows
        index = layer.full_index().expand(layer.keys.shape[0], heads, length)
        valid = torch.ones_like(index, dtype=torch.bool)
        if layer.valid is not None:
            valid = filled(layer.valid, length).expand(-1, heads, -1)
        for name, value in layer.memory.items():
            if value.shape[-1] < length:
                fresh = value.new_zeros(*value.shape[:-1], length - value.shape[-1])
                layer.memory[name] = torch.cat([value, fresh], dim=-1)
        return CacheView(
            layer=layer.number,
            depth=len(self.decoder.layers),
            keys=layer.keys,
            values=layer.values,
            valid=valid,
            index=index.where(valid, -1) if layer.valid is not None else index,
            vision=_column(prompt.vision[rows], index) & valid,
            protected=_column(prompt.protected[rows], index) & valid,
            prompt=prompt.lengths[rows],
            after=prompt.after[rows],
            generated=layer.seen - prompt.valid.shape[1],
            memory=layer.memory,
            # A layer with a window has let go of entries that its attention still read.
            _received=None if received is None else received[..., received.shape[-1] - length :],
            _final=None if final is None else _column(final, index) & valid,
            _digest=prompt.digest[rows] if prompt.digest is not None and Signal.DIGEST in policy.signals() else None,
        )

    def _apply(self, layer: CompressedLayer, policy: CachePolicy, selection: Selection | None) -> None:
        if selection is None:
            return
        heads = layer.keys.shape[1]
        keep = selection.keep.to(layer.keys.device)
        if keep.dim() == 2:
            keep = keep[:, None].expand(-1, heads, -1)
        keep = keep.expand(layer.keys.shape[0], -1, -1)
        if debugging():
            self._check(layer, policy, replace(selection, keep=keep))
        if layer.valid is not None:
            valid = filled(layer.valid, layer.length).expand(-1, heads, -1)
            picked = gather_entries(valid, keep.clamp(min=0)) & (keep >= 0)
            keep = keep.masked_fill(~picked, -1)
        if policy.hides():
            # Nothing leaves; the coming step sees what was selected (and itself).
            seen = torch.zeros(*keep.shape[:2], layer.length + 1, dtype=torch.bool, device=keep.device)
            layer.visible = seen.scatter(2, keep.where(keep >= 0, layer.length), True)[..., :-1]
            return
        anew, planes = policy.positions != "keep", self.decoder.planes > 1
        before = self._phases(layer) if anew and (planes or policy.positions == "rerotate") else None
        used = None if layer.valid is None else filled(layer.valid, layer.length).expand(-1, heads, -1)
        layer.evict(keep, ragged=selection.ragged or layer.valid is not None)
        if before is not None and planes:
            used = torch.ones_like(before[..., 0], dtype=torch.bool) if used is None else used
            self._close_up(layer, keep, before, used, rotate=policy.positions == "rerotate")
        elif anew:
            self._place(layer, keep, before)
        if self.packs(layer.number):
            layer.pack()

    def _check(self, layer: CompressedLayer, policy: CachePolicy, selection: Selection) -> None:
        try:
            selection.check(layer.length, batch_size=layer.keys.shape[0])
        except (TypeError, ValueError) as error:
            raise TokcompError(f"cache policy '{policy.name}' returned a wrong selection: {error}") from error

    # -- positions ---------------------------------------------------------------------------------------------------

    def _place(self, layer: CompressedLayer, keep: Tensor, before: Tensor | None) -> None:
        """Number what comes next by the length of the layer's cache; with the keys' positions ``before``, rotate them to
        their slots."""
        valid = layer.valid
        count: Any = layer.length if valid is None else filled(valid, layer.length).sum(dim=-1).amax(dim=-1)
        layer.offset = layer.request.next_position - count - self.decoder.first_position
        if before is None:
            return
        slots = torch.arange(layer.length, device=keep.device).expand_as(keep)
        if valid is not None:
            slots = (valid.long().cumsum(dim=-1) - 1).clamp(min=0)
        slots = slots + self.decoder.first_position
        self._rotate(layer, slots - gather_entries(before, keep.clamp(min=0)))
        layer.phase = slots

    def _close_up(self, layer: CompressedLayer, keep: Tensor, before: Tensor, used: Tensor, *,
                  rotate: bool) -> None:  # fmt: skip
        """The same where positions have planes: values that no entry has any more are closed up."""
        b, heads, length, _ = before.shape
        kept = torch.zeros(b, heads, length + 1, dtype=torch.bool, device=keep.device)
        kept = kept.scatter(2, keep.where(keep >= 0, length), True)[..., :-1]
        until = self._next(layer).expand(b).repeat_interleave(heads)
        moved, lag = close_up(before.permute(3, 0, 1, 2).flatten(1, 2), used.flatten(0, 1), kept.flatten(0, 1), until)
        index = keep.clamp(min=0)
        phase = gather_entries(moved.permute(1, 2, 0).unflatten(0, (b, heads)), index)
        if rotate:
            axes = self.decoder.axes()
            self._rotate(layer, (phase - gather_entries(before, index))[..., axes])  # (b, g, k, d_rot / 2)
        # Heads may lose different numbers of positions; what comes next stands behind all of them.
        down = lag.view(b, heads).amin(dim=1)
        layer.offset = down if layer.offset is None else layer.offset + down
        layer.phase = phase

    def _rotate(self, layer: CompressedLayer, turns: Tensor) -> None:
        freq = self.decoder.inv_freq(layer.number)
        if freq is not None:
            layer.keys = rerotate(layer.keys, turns, freq, interleaved=self.decoder.interleaved())

    def _next(self, layer: CompressedLayer) -> Tensor:
        """Position of the coming token in the layer's numbering ``[b|1]``."""
        coming = layer.request.next_position
        return coming if layer.offset is None else coming - layer.offset

    def _phases(self, layer: CompressedLayer) -> Tensor:
        """The position of each key in the layer's numbering ``[b, g, l]``, or its planes ``[b, g, l, p]``."""
        assert layer.phase is not None
        b, heads = layer.keys.shape[:2]
        phase = layer.phase.expand(b, heads, *layer.phase.shape[2:])
        fresh = layer.length - phase.shape[2]
        if fresh == 0:
            return phase
        later = self._next(layer)[:, None] - torch.arange(fresh, 0, -1, device=phase.device)  # (b|1, fresh)
        later = later[:, None] if phase.dim() == 3 else later[:, None, :, None]
        return torch.cat([phase, later.expand(b, heads, fresh, *phase.shape[3:])], dim=2)


def _column(values: Tensor, index: Tensor) -> Tensor:
    """``values`` ``[b, l0]`` of the prompt at ``index`` ``[b, g, l]``; False for tokens that came after the prompt."""
    flat = index.flatten(1)
    inside = flat < values.shape[1]
    picked = values.expand(flat.shape[0], -1).gather(1, flat.clamp(max=values.shape[1] - 1)) & inside
    return picked.view(index.shape)
