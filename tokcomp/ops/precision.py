"""Keeps autocast from what is computed in float32 on purpose."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor

__all__ = ["autocast_is_on", "without_autocast"]

_Rest = ParamSpec("_Rest")


def autocast_is_on(tensor: Tensor) -> bool:
    """Whether operations on this tensor choose their own dtype."""
    return torch.is_autocast_enabled(tensor.device.type)


def without_autocast(function: Callable[_Rest, Tensor]) -> Callable[_Rest, Tensor]:
    """Decorator of a function of tensors: inside ``torch.autocast`` it computes as outside."""

    @functools.wraps(function)
    def exact(*args: _Rest.args, **kwargs: _Rest.kwargs) -> Tensor:
        first = args[0]
        assert isinstance(first, Tensor)
        if not autocast_is_on(first):
            return function(*args, **kwargs)
        with torch.autocast(first.device.type, enabled=False):
            return function(*args, **kwargs)

    return exact
