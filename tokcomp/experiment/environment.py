"""What a run ran on."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import tokcomp
from tokcomp.errors import ConfigurationError
from tokcomp.experiment.config import DEVICES

__all__ = ["describe", "refuse_unusable"]

_PACKAGES = ("torch", "transformers", "hydra-core", "pydantic", "numpy", "pillow")


def describe(device: str) -> dict[str, Any]:
    """Versions, machine and device, as plain data."""
    return {
        "tokcomp": tokcomp.__version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "device_name": _device_name(device),
    }


def refuse_unusable(device: str) -> None:
    """Raise where this machine cannot use a device.

    Raises:
        ConfigurationError: it has no such device, or torch was built without it.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a CPU build of torch asserts
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(f"device={device} cannot be used here ({reason}): {DEVICES}") from None


def _device_name(device: str) -> str | None:
    """The GPU's name; a run that failed because there is none has a record, too."""
    if not device.startswith("cuda") or (torch.device(device).index or 0) >= torch.cuda.device_count():
        return None
    return torch.cuda.get_device_name(device)


@cache
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def _cpu() -> str:
    """The processor's name; Linux tells it in a file, other systems by ``platform``."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
