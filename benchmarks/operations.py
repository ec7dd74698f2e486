"""How many operations a call gives the device: a count that does not depend on how busy the machine is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["counted"]

# They make no kernel: memory that nothing is written to, and looks at a value (which wait, see benchmarks/waits.py).
_FREE = ("empty", "_local_scalar_dense", "detach", "lift_fresh", "is_")


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and not func.overloadpacket.__name__.startswith(_FREE):
            self.number += 1
        return func(*args, **(kwargs or {}))


def counted(call: Callable[[], Any]) -> int:
    """Operations of ``call()`` that do work: views of a tensor are free and do not count. ``call`` must not go into inference
    mode itself, where composed operations would be counted instead of their parts."""
    with torch.no_grad(), _Counter() as counter:
        call()
    return counter.number
