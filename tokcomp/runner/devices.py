"""On which devices a model computes, wherever its weights lie in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from tokcomp.errors import UnsupportedError
from tokcomp.models.adapter import Adapter

__all__ = ["device_of", "layer_devices", "moves_inputs"]


def layer_devices(adapter: Adapter) -> list[torch.device] | None:
    """The device on which each decoder layer computes; None where all layers, and the input embeddings, share one.

    Weights may lie elsewhere (accelerate's offloading): what counts is where its hooks bring them to.

    Raises:
        UnsupportedError: a layer, or the vision tower with its projector, is itself split over several devices.
    """
    if adapter.tower is not None:
        parts = [block.module for block in adapter.tower.blocks] + [adapter.tower.entry, adapter.tower.exit]
        _one_device(parts, "the vision tower with its projector")
    devices = [_one_device([layer], f"layer {number} of the language model")
               for number, layer in enumerate(adapter.decoder.layers)]  # fmt: skip
    embed = adapter.embed or getattr(adapter.decoder.module, "embed_tokens", None)
    start = {} if embed is None else _devices(embed)
    return devices if len({*devices, *start}) > 1 else None


def _one_device(parts: Sequence[nn.Module], what: str) -> torch.device:
    found = sorted({str(device) for part in parts for device in _devices(part)})
    if len(found) > 1:
        raise UnsupportedError(
            f"{what} is split over several devices ({', '.join(found)}), and its tokens are compressed on one: give a "
            "device_map that keeps it together (the layers of the language model may be spread, one by one)"
        )
    return next(device for part in parts for device in _devices(part))


def moves_inputs(model: nn.Module) -> bool:
    """Whether hooks of accelerate bring what the model is called with to its devices."""
    return getattr(model, "_hf_hook", None) is not None


def device_of(module: nn.Module) -> torch.device | None:
    """Where a module's first weight lies; None for a module without weights."""
    return next((parameter.device for parameter in module.parameters()), None)


def _devices(module: nn.Module) -> set[torch.device]:
    devices: set[torch.device] = set()
    for part in module.modules():
        hook: Any = getattr(part, "_hf_hook", None)
        target = getattr(hook, "execution_device", None)
        if target is not None:
            devices.add(torch.device("cuda", target) if isinstance(target, int) else torch.device(target))
    if devices:
        return devices
    return {parameter.device for parameter in module.parameters()}
