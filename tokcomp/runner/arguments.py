"""The arguments of the model's own calls by name, whichever name the installed transformers gives the cache."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["by_name", "cache_in", "cache_name"]

_CACHE_NAMES = "cache", "past_key_values"
"""From transformers 5.24 on the argument is ``cache``; before that it was ``past_key_values``."""


def cache_name(module: nn.Module) -> str:
    """What ``module.forward`` calls the cache."""
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"


def cache_in(values: Mapping[str, Any]) -> Any:
    """The cache among the keyword arguments of a call, or in a model's output, or None."""
    return next((values[name] for name in _CACHE_NAMES if values.get(name) is not None), None)


def by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``module.forward`` by name."""
    if not args:
        return dict(kwargs)
    return {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}
