"""Devices that are not there: tensors carry a label, and an operation on two labels fails as it would on two devices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from tokcomp.runner.masks import stand_in
from tokcomp.runner.tables import constant

__all__ = ["HOME", "PretendDevices"]

HOME = torch.device("cpu")
_DEVICE: Any = torch.Tensor.device


class PretendDevices(TorchFunctionMode):
    """While it is on, ``torch.device("cpu", 1)`` and so on are devices of their own, all of which compute on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Any = WeakIdKeyDictionary()
        for made_once in (constant, stand_in):  # for other pretended devices
            made_once.cache_clear()

    def place(self, module: nn.Module, device: torch.device) -> None:
        """Say that a module's weights lie on ``device``."""
        for tensor in (*module.parameters(), *module.buffers()):
            self.places[tensor] = device

    def where(self, tensor: Tensor) -> torch.device:
        found: torch.device = self.places.get(tensor, HOME)
        return found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__self__", None) is _DEVICE:
            return self.where(args[0])
        name = getattr(func, "__name__", "")
        if name in ("to", "cpu"):
            return self._moved(name, func, args, kwargs)
        target = kwargs.get("device")
        if target is not None:
            kwargs["device"] = HOME
            target = torch.device(target)
        else:
            target = self._common(name, tree_leaves((args, kwargs)))
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.places[tensor] = target
        return out

    def _moved(self, name: str, func: Any, args: Any, kwargs: Any) -> Tensor:
        tensor, target = args[0], HOME if name == "cpu" else self.where(args[0])
        rest = []
        for value in args[1:]:
            if isinstance(value, torch.device | str):
                target = torch.device(value)
            elif isinstance(value, Tensor):
                target, value = self.where(value), value.dtype
                rest.append(value)
            else:
                rest.append(value)
        if kwargs.get("device") is not None:
            target = torch.device(kwargs["device"])
        kwargs.pop("device", None)
        out: Tensor = func(tensor, *rest, **kwargs) if rest or kwargs else tensor
        if out is tensor and target != self.where(tensor):
            out = tensor.clone()
        self.places[out] = target
        return out

    def _common(self, name: str, values: Iterable[Any]) -> torch.device:
        """The device of the tensors among ``values``; a number lies everywhere."""
        tensors = [value for value in values if isinstance(value, Tensor)]
        places = {self.where(tensor) for tensor in tensors if tensor.dim()}
        if len(places) > 1:
            raise RuntimeError(f"{name}: tensors on {', '.join(sorted(map(str, places)))}")
        return next(iter(places)) if places else self.where(tensors[0]) if tensors else HOME
