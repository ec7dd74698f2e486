"""What comes next in a shortened cache, by the policy's ``positions``: its position, and the angles of the cached keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokcomp.models.adapter import Decoder
from tokcomp.ops.rotary import mean_rotation, rerotate, rotation
from tokcomp.runner.apply import gather_entries
from tokcomp.runner.cache import CompressedLayer
from tokcomp.runner.positions import close_up
from tokcomp.runner.stacking import turned
from tokcomp.runner.tables import filled
from tokcomp.stages import CachePolicy

__all__ = ["Numbering", "Turn"]

Turn = tuple[CompressedLayer, Tensor, Tensor]
"""A layer whose keys are to be turned, and the cosine and sine by which."""


class Numbering:
    """The numbering of one decoder's cache layers."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        turning = [decoder.inv_freq(number) is not None for number in range(len(decoder.layers))]
        self._turning = [(decoder.table(number), each) for number, each in enumerate(turning)]

    def before(self, layer: CompressedLayer, policy: CachePolicy, shared: dict[Any, Any]) -> Tensor | None:
        """The keys' positions ahead of an eviction, where the policy's numbering goes by them."""
        if policy.positions != "rerotate" and not (policy.positions == "renumber" and self.decoder.planes > 1):
            return None
        if layer.kin is None:
            return self._phases(layer)
        name = ("phases", layer.kin, layer.length)
        if name not in shared:
            shared[name] = self._phases(layer)
        phases: Tensor = shared[name]
        return phases

    def number_anew(self, layer: CompressedLayer, policy: CachePolicy, keep: Tensor, before: Tensor | None,
                    used: Tensor | None, shared: dict[Any, Any]) -> list[Turn]:  # fmt: skip
        """Number what comes next. ``keep`` ``[b, g, k]``: what stayed; ``before``, ``used``: positions and validity ahead of
        the eviction; ``shared``: what was found for other layers in this pass. Returns how its keys are still to be turned,
        see :meth:`turn`."""
        if before is not None and self.decoder.planes > 1:
            used = torch.ones_like(before[..., 0], dtype=torch.bool) if used is None else used
            self._close_up(layer, keep, before, used, rotate=policy.positions == "rerotate")
        elif policy.positions != "keep":
            return self._place(layer, keep, before, shared)
        return []

    def turn(self, turns: list[Turn]) -> None:
        """Turn the keys of layers as :meth:`number_anew` said, those that turn alike at once."""
        groups: dict[tuple[int, torch.Size], list[Turn]] = {}
        for each in turns:
            groups.setdefault((id(each[1]), each[0].keys.shape), []).append(each)
        for group in groups.values():
            _, cos, sin = group[0]
            keys = turned([layer.keys for layer, _, _ in group], cos, sin, interleaved=self.decoder.interleaved())
            for (layer, _, _), own in zip(group, keys, strict=True):
                layer.keys = own

    def rotation(self, layer: CompressedLayer, steps: int) -> Tensor:
        """The mean of the rotations to the next ``steps`` positions ``[b, d, d]``."""
        b, _, _, width = layer.keys.shape
        freq = self.decoder.inv_freq(layer.number)
        if freq is None:
            return torch.eye(width, device=layer.keys.device).expand(b, -1, -1)
        start = layer.coming().expand(b)
        return mean_rotation(start, steps, freq, width, interleaved=self.decoder.interleaved())

    def _place(self, layer: CompressedLayer, keep: Tensor, before: Tensor | None,
               shared: dict[Any, Any]) -> list[Turn]:  # fmt: skip
        """Number what comes next by the length of the layer's cache; with the keys' positions ``before``, rotate them to
        their slots."""
        if layer.kin is None:
            return self._place_alone(layer, keep, before, shared)
        name = "placed", layer.kin, layer.length, before is None, layer.keys.device, self._turning[layer.number]
        if name not in shared:
            turns = self._place_alone(layer, keep, before, shared)
            shared[name] = layer.offset, layer.phase, [angles for _, *angles in turns]
            return turns
        layer.offset, phase, each = shared[name]
        if before is not None:
            layer.phase = phase
        return [(layer, *angles) for angles in each]

    def _place_alone(self, layer: CompressedLayer, keep: Tensor, before: Tensor | None,
                     shared: dict[Any, Any]) -> list[Turn]:  # fmt: skip
        valid = layer.valid
        start = self.decoder.first_position
        # One tensor for all that hold the same tokens, so that they share their rotary tables.
        name = ("offset", None if valid is None else layer.kin, layer.length, layer.keys.device)
        if name not in shared or (valid is not None and layer.kin is None):
            held = layer.length if valid is None else filled(valid, layer.length).sum(dim=-1).amax(dim=-1)
            shared[name] = layer.following() - held - start
        layer.offset = shared[name]
        if before is None:
            return []
        found = None if layer.kin is None else shared.get(("turns", layer.kin))
        if found is None:
            slots = torch.arange(layer.length, device=keep.device).expand_as(keep)
            if valid is not None:
                slots = (valid.long().cumsum(dim=-1) - 1).clamp(min=0)
            slots = slots + start
            turned: dict[int, tuple[Tensor, Tensor]] = {}  # by table of frequencies
            found = shared["turns", layer.kin] = slots, slots - gather_entries(before, keep.clamp(min=0)), turned
        layer.phase, moved, rotations = found
        freq = self.decoder.inv_freq(layer.number)
        if freq is None:
            return []
        if id(freq) not in rotations:
            rotations[id(freq)] = rotation(moved, freq)
        return [(layer, *rotations[id(freq)])]

    def _close_up(self, layer: CompressedLayer, keep: Tensor, before: Tensor, used: Tensor, *,
                  rotate: bool) -> None:  # fmt: skip
        """The same where positions have planes: values that no entry has any more are closed up."""
        b, heads, length, _ = before.shape
        kept = torch.zeros(b, heads, length + 1, dtype=torch.bool, device=keep.device)
        kept = kept.scatter(2, keep.where(keep >= 0, length), True)[..., :-1]
        until = layer.coming().expand(b).repeat_interleave(heads)
        moved, lag = close_up(before.permute(3, 0, 1, 2).flatten(1, 2), used.flatten(0, 1), kept.flatten(0, 1), until)
        index = keep.clamp(min=0)
        phase = gather_entries(moved.permute(1, 2, 0).unflatten(0, (b, heads)), index)
        if rotate:
            axes = self.decoder.axes()
            axes = None if axes is None else axes.to(phase.device)
            self._rotate(layer, (phase - gather_entries(before, index))[..., axes])  # (b, g, k, d_rot / 2)
        # Heads may lose different numbers of positions; what comes next stands behind all of them.
        down = lag.view(b, heads).amin(dim=1)
        layer.offset = down if layer.offset is None else layer.offset + down
        layer.phase = phase

    def _rotate(self, layer: CompressedLayer, turns: Tensor) -> None:
        freq = self.decoder.inv_freq(layer.number)
        if freq is not None:
            layer.keys = rerotate(layer.keys, turns, freq, interleaved=self.decoder.interleaved())

    def _phases(self, layer: CompressedLayer) -> Tensor:
        """The position of each key in the layer's numbering ``[b, g, l]``, or its planes ``[b, g, l, p]``."""
        phase = layer.full_phase()
        return phase.expand(*layer.keys.shape[:2], *phase.shape[2:])
