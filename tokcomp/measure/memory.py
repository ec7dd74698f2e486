"""Peak memory of a call. It is a pass of its own: never measure memory inside a timed run."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch.autograd import DeviceType, profiler

__all__ = ["PeakMemory", "model_bytes", "peak_memory"]


class PeakMemory(BaseModel):
    """Peak of the memory in tensors, in bytes.

    Attributes:
        before: bytes held when the call began (on a GPU measured, on CPU as the caller says).
        increase: the most that the call held at one moment on top of that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: int
    increase: int

    @property
    def peak(self) -> int:
        return self.before + self.increase


def model_bytes(model: torch.nn.Module) -> int:
    """Bytes of a model's parameters and buffers, shared ones counted once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def peak_memory(call: Callable[[], Any], *, device: torch.device | str = "cpu", resident: int = 0) -> PeakMemory:
    """Peak memory of ``call()``.

    On a GPU this is PyTorch's own record (``max_memory_allocated``) and costs nothing. On CPU every allocation and
    release of the tensor allocator during the call is recorded by the profiler and summed in order: exact to the byte,
    temporaries inside operators included, at about twice the time of the call and a few hundred bytes per operator for
    the record. Memory that the call releases but did not allocate is not credited to it, and memory that never passes
    through the allocator (Python objects, libraries' own buffers) is not seen on either.

    Args:
        call: what is measured; its result is dropped when it returns.
        device: where its tensors lie.
        resident: on CPU, bytes that lie in memory already and belong to the account, such as ``model_bytes(model)``.

    Raises:
        ValueError: a device that is neither a CPU nor a CUDA device.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return PeakMemory(before=before, increase=torch.cuda.max_memory_allocated(device) - before)
    if device.type != "cpu":
        raise ValueError(f"peak memory can be measured on cpu and cuda, not on {device.type}")
    return PeakMemory(before=resident, increase=_peak_on_cpu(call))


def _peak_on_cpu(call: Callable[[], Any]) -> int:
    # The profiler's C++ side writes a line to stderr at start and stop unless its log level is above them.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profiler.profile(profile_memory=True) as recorder:
        call()
    events = recorder.kineto_results.events() if recorder.kineto_results is not None else []
    changes = [event for event in events if event.name() == "[memory]" and event.device_type() == DeviceType.CPU]
    held = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return peak
