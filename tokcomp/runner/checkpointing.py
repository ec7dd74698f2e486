"""Gradient checkpointing while attached: a layer's backward pass computes the layer again, on what it was given.

The hooks of a pipeline stand outside of what is computed again, so that no decision is taken twice. Layers whose attention a
strategy looks at, and blocks of the vision tower that a reducer takes apart, keep their activations instead.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Set
from typing import Any

import torch
from torch import nn

from tokcomp.errors import UnsupportedError
from tokcomp.models.adapter import Adapter
from tokcomp.runner.arguments import by_name
from tokcomp.runner.hooks import Hooks

__all__ = ["Checkpointing"]

_CACHES = "cache", "past_key_values"


class Checkpointing:
    """The layers of a model that are checkpointed as the pipeline attaches.

    Args:
        adapter: the model. ``keeping``: layers and blocks that are not computed again.
        policy: the cache policy's name, or None.
    """

    def __init__(self, adapter: Adapter, keeping: Set[nn.Module], policy: str | None) -> None:
        self.caller, self.keeping, self.policy = adapter.multimodal or adapter.decoder.module, keeping, policy
        blocks = () if adapter.tower is None else tuple(block.module for block in adapter.tower.blocks)
        self.all = (*adapter.decoder.layers, *blocks)
        self.layers = [layer for layer in adapter.decoder.layers if _is_checkpointed(layer)]

    def install(self, hooks: Hooks) -> None:
        layer: Any
        for layer in filter(_is_checkpointed, self.all):
            if layer not in self.keeping:
                again = _checkpointed(layer, layer.forward, layer._gradient_checkpointing_func)
                hooks.replace_forward(layer, again)
            hooks.set(layer, "gradient_checkpointing", False)
        if self.layers:
            hooks.before(self.caller, self._without_cache)
        hooks.before(self.caller, self._refuse_latecomers)

    def _refuse_latecomers(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled() and any(layer.training and _is_checkpointed(layer) for layer in self.all):
            raise UnsupportedError(
                "gradient checkpointing was switched on inside the `with` block: switch it on before attaching"
            )

    def _without_cache(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A layer that is computed twice would write its entries twice: transformers runs without a cache then."""
        if not (torch.is_grad_enabled() and any(layer.training for layer in self.layers)):
            return None
        if self.policy is not None:
            raise UnsupportedError(
                f"gradient checkpointing leaves no cache for cache policy '{self.policy}' to act on: leave the policy out, or "
                "disable gradient checkpointing"
            )
        given = by_name(module, args, kwargs)
        return (), {**given, **dict.fromkeys(_CACHES & given.keys()), "use_cache": False}


def _is_checkpointed(layer: Any) -> bool:
    return bool(getattr(layer, "gradient_checkpointing", False))


def _checkpointed(layer: Any, forward: Callable[..., Any], checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if not (layer.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        return checkpoint(functools.partial(forward, **kwargs), *args)

    return checkpointed
