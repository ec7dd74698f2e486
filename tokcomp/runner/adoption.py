"""Which caches can be compressed, and how one that is empty, or holds text alone, is made into one that is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import QuantizedCache
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from tokcomp.errors import UnsupportedError
from tokcomp.models.adapter import Decoder
from tokcomp.runner.cache import CompressedLayer
from tokcomp.runner.positions import next_after
from tokcomp.runner.request import Entries, Prompt, Request
from tokcomp.runner.stored import StoredLayer

__all__ = ["adopt", "adopt_text", "holds_text", "note_text", "refuse_implementation", "refuse_unfit"]

_PLAIN = {DynamicLayer, DynamicSlidingWindowLayer}
_NAMED = {None, "dynamic", "dynamic_full", "quantized"}
"""Values of ``cache_implementation`` whose caches can be compressed."""
_WAY_OUT = (
    "cannot be compressed: its layers must be able to have different lengths. Use the default dynamic cache (no "
    "cache_implementation, no StaticCache, no offloading)"
)


_MARK = "_tokcomp_text"
"""Attribute of a cache that holds text alone, read while a pipeline was attached: the position ids of the latest pass (None where
the decoder made them itself), and how many tokens it held afterwards."""


def adopt(cache: Any, request: Request, decoder: Decoder, policy: str | None) -> None:
    """Give an empty cache compressed layers; ``policy``: the cache policy's name, or None.

    Raises:
        UnsupportedError: see :func:`refuse_unfit`.
    """
    refuse_unfit(cache, policy)
    depth = len(decoder.layers)
    request.entries = [Entries() for _ in range(depth)]
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


def note_text(cache: Any, positions: Tensor | None, coming: int) -> None:
    """Note that a cache holds text alone, its latest tokens at these position ids; ``coming`` of it are about to be read."""
    if isinstance(cache, DynamicCache):
        setattr(cache, _MARK, (positions, cache.get_seq_length() + coming))


def holds_text(cache: Any) -> bool:
    """Whether all that a cache holds, if anything, is text that was read while a pipeline was attached."""
    return hasattr(cache, _MARK) or (isinstance(cache, DynamicCache) and cache.get_seq_length() == 0)


def adopt_text(cache: Any, decoder: Decoder, policy: str | None, tokens: Tensor, shown: Tensor | None) -> Request:
    """Give a cache that holds text compressed layers that hold the same.

    Args:
        cache: the cache. ``decoder``: whose it is. ``policy``: the cache policy's name, or None.
        tokens: those that follow ``[b, t, ...]``.
        shown: which of the columns read so far are no padding ``[b, c]``, None for all.

    Returns:
        The request of that text.

    Raises:
        UnsupportedError: the cache holds something else.
    """
    positions, length = getattr(cache, _MARK, (None, -1))
    if length != cache.get_seq_length():
        raise UnsupportedError("this cache holds a prompt that was read without tokcomp: start with an empty cache")
    held, valid = list(cache.layers), shown
    if valid is None:
        valid = torch.ones(tokens.shape[0], length, dtype=torch.bool, device=tokens.device)
    prompt = Prompt.of_text(valid, present=shown)
    request = Request(prompt, [], [[]] * len(valid), [0] * len(valid), [0] * len(valid))
    columns = torch.arange(valid.shape[1], device=valid.device)[None]
    request.next_position = next_after(columns + decoder.first_position if positions is None else positions)
    request.padded = shown is not None
    adopt(cache, request, decoder, policy)
    for layer, before in zip(cache.layers, held, strict=True):
        _take_over(layer, before, columns, shown, decoder.planes)
    return request


def _take_over(layer: CompressedLayer, before: DynamicLayer, columns: Tensor, valid: Tensor | None,
               planes: int) -> None:  # fmt: skip
    """Let a layer hold what one of transformers' own does: the latest of the ``columns`` ``[1, c]``, of which ``valid``
    ``[b, c]`` (None: all) are no padding, numbered in their order."""
    layer.lazy_initialization(before.keys, before.values)
    layer.keys, layer.values, layer.seen = before.keys, before.values, columns.shape[1]
    b, held = layer.keys.shape[0], slice(columns.shape[1] - layer.keys.shape[-2], None)
    counted = torch.ones_like(columns, dtype=torch.bool) if valid is None else valid
    later = counted.long().flip(1).cumsum(dim=1).flip(1)  # tokens from each column on
    layer.phase = (layer.following()[:, None] - later)[:, None][..., held]
    if planes > 1:
        layer.phase = layer.phase[..., None].expand(-1, -1, -1, planes)
    layer.index = columns.expand(b, -1)[:, None][..., held]
    layer.valid = None if valid is None else valid[:, None][..., held]
    layer.rows, layer.kin = torch.arange(b, device=columns.device), id(layer.request)
    layer.request.entries[layer.number] = layer.entry()
