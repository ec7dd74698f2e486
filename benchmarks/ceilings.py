"""The rates of a device that bounds are taken from: a large matrix product and a large copy, on random data."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.rounds import in_rounds

__all__ = ["ceilings"]


@torch.inference_mode()
def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """FLOP/s of a square product and bytes/s (read plus written) of a copy."""
    side, numbers = (8192, 2**30) if device.type == "cuda" else (1536, 2**25)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source, target = (torch.empty(numbers, device=device, dtype=dtype).normal_() for _ in range(2))
    samples = in_rounds({"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, device, repeats=7, warmup=2)
    product, copy = (samples[name].spread().median for name in ("product", "copy"))
    return {"flops_per_s": 2 * side**3 / product, "bytes_per_s": 2 * source.nbytes / copy, "dtype": str(dtype)}
