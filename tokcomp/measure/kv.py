"""Bytes of the key/value cache: computed from its lengths, or measured on a cache object."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokcomp.errors import UnsupportedError

__all__ = ["KVBytes", "kv_bytes", "measured_kv_bytes"]


@dataclass(frozen=True)
class KVBytes:
    """Bytes of keys and values, by layer."""

    by_layer: tuple[float, ...]

    @property
    def total(self) -> float:
        return sum(self.by_layer)


def kv_bytes(lengths: Iterable[float | Sequence[float]], *, kv_heads: int, head_dim: int,
             dtype: torch.dtype = torch.float16) -> KVBytes:  # fmt: skip
    """Bytes that the entries of one sample take: ``2 * entries * head_dim * bytes per number``, summed over the heads.

    Args:
        lengths: for each layer the entries of every key/value head: one number where all heads hold as many, or one
            number per head (true counts, padding not included).
        kv_heads: key/value heads of the model.
        head_dim: width of a head.
        dtype: number format of the cache.

    Raises:
        ValueError: a layer names another number of heads than ``kv_heads``.
    """
    layers = []
    for layer, length in enumerate(lengths):
        if isinstance(length, Sequence):
            if len(length) != kv_heads:
                raise ValueError(f"layer {layer} names the lengths of {len(length)} heads, the model has {kv_heads}")
            entries = sum(length)
        else:
            entries = length * kv_heads
        layers.append(2 * entries * head_dim * dtype.itemsize)
    return KVBytes(tuple(layers))


def measured_kv_bytes(cache: Any) -> KVBytes:
    """Bytes of memory that a transformers cache holds on to, padding and unused room included.

    What counts is the storage behind the tensors: a shortened view of a long tensor keeps the long one alive. A storage
    that several layers share counts once, in the first of them.

    Args:
        cache: a transformers ``Cache`` (its ``layers`` have ``keys`` and ``values``).

    Raises:
        UnsupportedError: the object has no such layers.
    """
    layers = getattr(cache, "layers", None)
    if layers is None:
        raise UnsupportedError(
            f"a {type(cache).__name__} has no layers with keys and values: give a transformers Cache"
        )
    seen: set[int] = set()
    return KVBytes(tuple(_new_storage(_tensors(layer), seen) for layer in layers))


def _tensors(layer: Any) -> Iterable[Tensor | None]:
    """A layer's keys and values; a layer that holds more than these two names them all."""
    named = getattr(layer, "tensors", None)
    return (layer.keys, layer.values) if named is None else named()


def _new_storage(tensors: Iterable[Tensor | None], seen: set[int]) -> int:
    held = 0
    for tensor in tensors:
        if tensor is None or not tensor.numel():  # a layer that has not been written to yet
            continue
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            held += storage.nbytes()
    return held
