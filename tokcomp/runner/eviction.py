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
from tokcomp.runner.positions import close_up
from tokcomp.stages import CachePolicy
from tokcomp.types import CacheView, Selection, Signal, debugging

__all__ = ["Evictor"]


class Evictor:
    """Runs one cache policy on the layers that it acts on."""

    def __init__(self, policy: CachePolicy, decoder: Decoder) -> None:
        self.policy, self.decoder = policy, decoder
        self.layers = frozenset(policy.acts_on(len(decoder.layers)))
        self.waits = Signal.FINAL_TOKENS in policy.needs
        self.observes = Signal.RECEIVED_ATTENTION in policy.needs

    def after_prefill(self, layer: CompressedLayer, received: Tensor | None, final: Tensor | None = None) -> None:
        """Act on a layer that holds the prompt; ``final`` ``[b, l0]`` are the columns alive after the last layer."""
        self._apply(layer, self.policy.after_prefill(self._view(layer, received, final)))

    def after_step(self, layer: CompressedLayer, received: Tensor | None) -> None:
        """Act on a layer after one decoding step."""
        layer.visible = None
        self._apply(layer, self.policy.after_step(self._view(layer, received, None)))

    def _view(self, layer: CompressedLayer, received: Tensor | None, final: Tensor | None) -> CacheView:
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
            memory=layer.memory,
            _received=received if self.observes else None,
            _final=None if final is None else _column(final, index) & valid,
            _digest=prompt.digest[rows] if prompt.digest is not None and Signal.DIGEST in self.policy.needs else None,
        )

    def _apply(self, layer: CompressedLayer, selection: Selection | None) -> None:
        if selection is None:
            return
        heads = layer.keys.shape[1]
        keep = selection.keep.to(layer.keys.device)
        if keep.dim() == 2:
            keep = keep[:, None].expand(-1, heads, -1)
        keep = keep.expand(layer.keys.shape[0], -1, -1)
        if debugging():
            self._check(layer, replace(selection, keep=keep))
        if layer.valid is not None:
            valid = filled(layer.valid, layer.length).expand(-1, heads, -1)
            picked = gather_entries(valid, keep.clamp(min=0)) & (keep >= 0)
            keep = keep.masked_fill(~picked, -1)
        if self.policy.hides():
            # Nothing leaves; the coming step sees what was selected (and itself).
            seen = torch.zeros(*keep.shape[:2], layer.length + 1, dtype=torch.bool, device=keep.device)
            layer.visible = seen.scatter(2, keep.where(keep >= 0, layer.length), True)[..., :-1]
            return
        anew = self.policy.positions != "keep"
        before = (
            self._phases(layer) if anew and (self.policy.positions == "rerotate" or self.decoder.planes > 1) else None
        )
        used = None if layer.valid is None else filled(layer.valid, layer.length).expand(-1, heads, -1)
        layer.evict(keep, ragged=selection.ragged or layer.valid is not None)
        if before is not None and self.decoder.planes > 1:
            self._close_up(
                layer, keep, before, torch.ones_like(before[..., 0], dtype=torch.bool) if used is None else used
            )
        elif anew:
            self._place(layer, keep, before)

    def _check(self, layer: CompressedLayer, selection: Selection) -> None:
        try:
            selection.check(layer.length, batch_size=layer.keys.shape[0])
        except (TypeError, ValueError) as error:
            raise TokcompError(f"cache policy '{self.policy.name}' returned a wrong selection: {error}") from error

    # -- positions ---------------------------------------------------------------------------------------------------

    def _place(self, layer: CompressedLayer, keep: Tensor, before: Tensor | None) -> None:
        """Number what comes next, by the policy's ``positions``."""
        valid = layer.valid
        count: Any = layer.length if valid is None else filled(valid, layer.length).sum(dim=-1).amax(dim=-1)
        layer.offset = layer.request.next_position - count
        if before is None:
            return
        slots = torch.arange(layer.length, device=keep.device).expand_as(keep)
        if valid is not None:
            slots = (valid.long().cumsum(dim=-1) - 1).clamp(min=0)
        moved = slots - gather_entries(before, keep.clamp(min=0))
        layer.keys = rerotate(layer.keys, moved, self.decoder.inv_freq(), interleaved=self.decoder.interleaved())
        layer.phase = slots

    def _close_up(self, layer: CompressedLayer, keep: Tensor, before: Tensor, used: Tensor) -> None:
        """The same where positions have planes: values that no entry has any more are closed up."""
        b, heads, length, _ = before.shape
        kept = torch.zeros(b, heads, length + 1, dtype=torch.bool, device=keep.device)
        kept = kept.scatter(2, keep.where(keep >= 0, length), True)[..., :-1]
        until = self._next(layer).expand(b).repeat_interleave(heads)
        moved, lag = close_up(before.permute(3, 0, 1, 2).flatten(1, 2), used.flatten(0, 1), kept.flatten(0, 1), until)
        index = keep.clamp(min=0)
        phase = gather_entries(moved.permute(1, 2, 0).unflatten(0, (b, heads)), index)
        if self.policy.positions == "rerotate":
            axes = self.decoder.axes()
            turns = (phase - gather_entries(before, index))[..., axes]  # (b, g, k, d_rot / 2)
            layer.keys = rerotate(layer.keys, turns, self.decoder.inv_freq(), interleaved=self.decoder.interleaved())
        # Heads may lose different numbers of positions; what comes next stands behind all of them.
        down = lag.view(b, heads).amin(dim=1)
        layer.offset = down if layer.offset is None else layer.offset + down
        layer.phase = phase

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
