"""The least time that a device can take for a prompt and for each further token: arithmetic at its peak, bytes at its
bandwidth, whichever is longer, layer by layer.

It is a bound and no forecast: kernels reach a part of both rates, short matrices a smaller one, and a GPU waits for Python
where layers are small. Weights are read once per layer, whatever the batch; the cache is read by every decoding step;
activations are taken to stay on the chip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokcomp.errors import ConfigurationError, suggest
from tokcomp.measure.flops import FlopCount
from tokcomp.measure.shape import ModelShape

__all__ = ["DEVICES", "DeviceSpec", "LeastTime", "device_spec", "layer_parameters", "least_time"]


@dataclass(frozen=True)
class DeviceSpec:
    """Peak rates of a device.

    Attributes:
        name: for tables.
        flops: dense half-precision FLOP/s.
        bandwidth: bytes/s of its memory.
    """

    name: str
    flops: float
    bandwidth: float


DEVICES = {
    "a100": DeviceSpec("a100", 312e12, 2.039e12),
    "h100": DeviceSpec("h100", 989e12, 3.35e12),
    "h200": DeviceSpec("h200", 989e12, 4.8e12),
    "l40s": DeviceSpec("l40s", 362e12, 0.864e12),
    "rtx4090": DeviceSpec("rtx4090", 165e12, 1.008e12),
}
"""From the vendors' data sheets: half precision without sparsity; of A100 (80 GB), H100 and H200 the SXM parts."""


def device_spec(text: str) -> DeviceSpec:
    """A device by name, or by its rates: ``"790e12,4.3e12"`` are FLOP/s and bytes/s.

    Raises:
        ConfigurationError: neither a known name nor two positive numbers.
    """
    if text in DEVICES:
        return DEVICES[text]
    try:
        flops, bandwidth = (float(part) for part in text.split(","))
    except ValueError:
        flops = bandwidth = 0.0
    if not (flops > 0 and bandwidth > 0):
        raise ConfigurationError(
            f"device_spec='{text}' is no known device{suggest(text, tuple(DEVICES))} known: {', '.join(sorted(DEVICES))}; "
            "others by their rates, FLOP/s and bytes/s: device_spec='790e12,4.3e12'"
        )
    return DeviceSpec(text, flops, bandwidth)


@dataclass(frozen=True)
class LeastTime:
    """Seconds: of the prefill (tower to the first token's logits) and of each further token, the mean of all steps; None
    where there is none."""

    prefill: float
    decode: float | None


def layer_parameters(shape: ModelShape) -> int:
    """Weights of one language-model layer (norms and biases left out)."""
    attention = shape.hidden * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    return attention + shape.hidden * shape.intermediate * (3 if shape.gated else 2)


def least_time(shape: ModelShape, flops: FlopCount, cache_lengths: Sequence[float], device: DeviceSpec, *, new_tokens: int = 1,
               batch: int = 1, bytes_per_number: int = 2) -> LeastTime:  # fmt: skip
    """The bound for ``batch`` samples with the same counts.

    Args:
        shape: the model. flops: of one sample, ``new_tokens`` tokens long.
        cache_lengths: entries of each layer's cache after the prefill; every step is taken to read as many.
        device: its rates.
        bytes_per_number: of weights and cache.
    """

    def longer(operations: float, weights: float, entries: float = 0.0) -> float:
        read = bytes_per_number * (weights + batch * entries)
        return max(batch * operations / device.flops, read / device.bandwidth)

    layer, head = layer_parameters(shape), shape.hidden * shape.vocab
    tower = shape.tower
    prefill = longer(flops.patch_embedding + flops.tower_head + flops.projector, sum(a * b for a, b in shape.projector))
    if tower is not None:
        block = tower.hidden * (4 * tower.heads * tower.head_dim + tower.intermediate * (3 if tower.gated else 2))
        prefill += sum(longer(operations, block) for operations in flops.tower_blocks if operations)
    prefill += sum(longer(operations, layer) for operations in flops.prefill_layers)
    prefill += longer(flops.prefill_head, head) + longer(flops.selection, 0)
    steps = new_tokens - 1
    if steps < 1:
        return LeastTime(prefill, None)
    numbers = 2 * shape.kv_heads * shape.head_dim
    decode = longer(flops.decode_head / steps, head) + sum(
        longer(operations / steps, layer, numbers * entries)
        for operations, entries in zip(flops.decode_layers, cache_lengths, strict=True)
    )
    return LeastTime(prefill, decode)
