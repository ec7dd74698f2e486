"""On which devices a model computes, wherever its weights lie in between."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tokcomp.errors import UnsupportedError
from tokcomp.models.adapter import Adapter

__all__ = ["device_of", "moves_inputs", "refuse_several_devices"]


def refuse_several_devices(adapter: Adapter) -> None:
    """Raise where tower and language model do not all compute on one device.

    Weights may lie elsewhere (accelerate's offloading): what counts is where its hooks bring them to.

    Raises:
        UnsupportedError: parts of the model compute on different devices.
    """
    parts: dict[str, list[nn.Module]] = {"language model": list(adapter.decoder.layers)}
    if adapter.tower is not None:
        parts["vision tower"] = [block.module for block in adapter.tower.blocks]
    found = {
        part: sorted({str(device) for module in modules for device in _devices(module)})
        for part, modules in parts.items()
    }
    if len({device for devices in found.values() for device in devices}) > 1:
        where = "; ".join(f"{part}: {', '.join(devices)}" for part, devices in found.items())
        raise UnsupportedError(
            f"this model is split over several devices ({where}), and tokens are compressed on one: load it with "
            'device_map={"": DEVICE} (offloaded weights are fine)'
        )


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
