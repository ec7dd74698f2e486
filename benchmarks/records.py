"""Records of measurements: one JSON file per benchmark, written anew after every measurement."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers

__all__ = ["Log", "machine"]


def machine(device: torch.device) -> dict[str, Any]:
    """What a time depends on."""
    found: dict[str, Any] = {
        "torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version(),
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "cpu": _cpu(),
    }  # fmt: skip
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "gpu_memory": properties.total_memory, "cuda": torch.version.cuda}
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


class Log:
    """A record that grows; what was measured before a benchmark is cut off is on disk."""

    def __init__(self, path: Path, device: torch.device, command: str, **settings: Any) -> None:
        self.path = path
        self.content: dict[str, Any] = {
            "command": command, "settings": settings, "machine": machine(device), "rows": [], "left_out": [],
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, **row: Any) -> None:
        self.content["rows"].append(row)
        self.write()
        print(
            "  ".join(f"{name}={_short(value)}" for name, value in row.items() if not isinstance(value, dict | list)),
            flush=True,
        )

    def write(self) -> None:
        scratch = self.path.with_suffix(".partial")
        scratch.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        scratch.replace(self.path)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
