"""Computes the signals of plug-ins where a strategy needs them: shows their functions a layer's attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokcomp.errors import PluginError
from tokcomp.ops.scores import attention_rows
from tokcomp.plugin_signals import Attention, PluginSignal, attended
from tokcomp.runner.masks import Visibility, over_heads

__all__ = ["from_decoder", "from_tower", "split"]


def from_tower(needs: frozenset[Any], query: Tensor, key: Tensor, scale: float, mask: Tensor | None, *, n_prefix: int,
               layer: int) -> dict[str, Tensor]:  # fmt: skip
    """What plug-ins make of a block's attention ``[i, h, n, d]``: per patch ``[i, n]`` or ``[i, n, width]``."""
    signals = attended(needs, "vision")
    if not signals:
        return {}

    def rows(first: int, last: int) -> Tensor:
        seen = mask if mask is None or mask.shape[2] == 1 else mask[:, :, first:last]
        return attention_rows(query[:, :, first:last], key, scale=scale, mask=seen)

    shape = (key.shape[0], key.shape[2] - n_prefix)
    return _made(signals, Attention(query, key, scale, n_prefix, layer, rows), shape)


def from_decoder(needs: frozenset[Any], stage: str, query: Tensor, key: Tensor, scale: float, sees: Visibility, *, layer: int,
                 **logits: Any) -> dict[str, Tensor]:  # fmt: skip
    """What plug-ins make of a decoder layer's attention, per token of the sequence ``[b, l]`` (prefill) or per entry of each
    head ``[b, g, l]`` (cache)."""
    signals = attended(needs, stage)
    if not signals:
        return {}
    before = key.shape[2] - query.shape[2]  # keys that stood in the cache already

    def rows(first: int, last: int) -> Tensor:
        at = torch.arange(before + first, before + last, device=query.device)
        mask = over_heads(sees.rows(at), query.shape[1])
        return attention_rows(query[:, :, first:last], key, scale=scale, mask=mask, **logits)

    shape = (key.shape[0], key.shape[2]) if stage == "prefill" else tuple(key.shape[:3])
    return _made(signals, Attention(query, key, scale, 0, layer, rows), shape)


def _made(signals: list[PluginSignal], seen: Attention, shape: tuple[int, ...]) -> dict[str, Tensor]:
    found = {}
    for signal in signals:
        make: Callable[[Attention], Tensor] | None = signal.from_attention
        assert make is not None
        value = make(seen)
        wanted = shape if signal.width is None else (*shape, signal.width)
        if not isinstance(value, Tensor) or tuple(value.shape) != wanted:
            told = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise PluginError(
                f"signal '{signal}': {signal.provider.__module__}.{signal.provider.__qualname__} gave {told}, expected "
                f"{list(wanted)}: one {'number' if signal.width is None else f'row of {signal.width}'} per token"
            )
        found[str(signal)] = value
    return found


def split(signals: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Signals by the view's fields, and those of plug-ins, whose names begin without an underscore."""
    own = {name: value for name, value in signals.items() if name.startswith("_")}
    return own, {name: value for name, value in signals.items() if name not in own}
