"""Which caches can be compressed, and how an empty one is made into one that is."""

from __future__ import annotations

from typing import Any

from transformers import QuantizedCache
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from tokcomp.errors import UnsupportedError
from tokcomp.models.adapter import Decoder
from tokcomp.runner.cache import CompressedLayer
from tokcomp.runner.request import Entries, Request
from tokcomp.runner.stored import StoredLayer

__all__ = ["adopt", "refuse_implementation", "refuse_unfit"]

_PLAIN = {DynamicLayer, DynamicSlidingWindowLayer}
_NAMED = {None, "dynamic", "dynamic_full", "quantized"}
"""Values of ``cache_implementation`` whose caches can be compressed."""
_WAY_OUT = (
    "cannot be compressed: its layers must be able to have different lengths. Use the default dynamic cache (no "
    "cache_implementation, no StaticCache, no offloading)"
)


def adopt(cache: Any, request: Request, decoder: Decoder, *, policy: str | None, note_reads: bool) -> None:
    """Give an empty cache compressed layers; ``policy``: the cache policy's name; ``note_reads``: let the request note what
    every later pass reads.

    Raises:
        UnsupportedError: see :func:`refuse_unfit`.
    """
    refuse_unfit(cache, policy)
    depth = len(decoder.layers)
    request.entries = [Entries() for _ in range(depth)]
    request.reads = [[] for _ in range(depth)] if note_reads else None
    if isinstance(cache, QuantizedCache):
        cache.layers = [StoredLayer(request, number, store) for number, store in enumerate(cache.layers)]
    else:
        cache.layers = [CompressedLayer(request, number, decoder.window(number)) for number in range(depth)]


def refuse_unfit(cache: Any, policy: str | None) -> None:
    """Refuse a cache whose layers cannot have lengths of their own, or cannot lose what they hold to a cache policy.

    Raises:
        UnsupportedError: it is such a cache.
    """
    if isinstance(cache, QuantizedCache):
        if policy is not None:
            _refuse_quantized(policy)
        return
    plain = isinstance(cache, DynamicCache) and all(type(layer) in _PLAIN for layer in cache.layers)
    if not plain or getattr(cache, "offloading", False):
        found = {type(layer).__name__ for layer in getattr(cache, "layers", [])} or {type(cache).__name__}
        raise UnsupportedError(f"a {type(cache).__name__} with {', '.join(sorted(found))} {_WAY_OUT}")


def refuse_implementation(name: str | None, policy: str | None) -> None:
    """The same for what ``generate(cache_implementation=...)`` will make.

    Raises:
        UnsupportedError: it will make a cache that cannot be compressed.
    """
    if name not in _NAMED:
        raise UnsupportedError(f"cache_implementation='{name}' {_WAY_OUT}")
    if name == "quantized" and policy is not None:
        _refuse_quantized(policy)


def _refuse_quantized(policy: str) -> None:
    raise UnsupportedError(
        f"cache policy '{policy}' cannot evict from a quantized cache, which stores its entries in groups: use the default "
        "dynamic cache, or leave the policy out (the other stages work with it)"
    )
