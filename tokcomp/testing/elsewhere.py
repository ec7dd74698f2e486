"""A device that is not the CPU, on machines that have none: tensors that say they are elsewhere, and a mode that computes with
them and refuses to mix them with tensors of the CPU, as a GPU would."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

__all__ = ["ELSEWHERE", "Elsewhere", "MixedDevicesError", "UnimaginableError", "back", "send"]

ELSEWHERE = torch.device("meta")
"""What the device is called."""

_aten = torch.ops.aten
_COPIES = {_aten.copy_.default, _aten._to_copy.default}
_MAY_MIX = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    *_COPIES,
}
"""Operations that take tensors of the CPU beside others: indices, and copies between devices."""


class _Far(Tensor):
    """A tensor that is elsewhere; ``numbers`` holds what is in it."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> _Far:
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=ELSEWHERE,
        )  # fmt: skip

    def __init__(self, inner: Tensor) -> None:
        self.numbers = inner

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(f"{func} outside of the mode")

    def tolist(self) -> Any:
        return self.numbers.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.numbers.numpy()
        raise TypeError(
            "can't convert a tensor of another device to numpy: use Tensor.cpu() to copy it to host memory first"
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"elsewhere({self.numbers!r})"


def send(value: Tensor) -> Tensor:
    """The tensor, elsewhere."""
    return _Far(value)


def back(value: Tensor) -> Tensor:
    """The tensor on the CPU."""
    return value.numbers if isinstance(value, _Far) else value


class MixedDevicesError(RuntimeError):
    """Tensors of two devices met."""


class UnimaginableError(RuntimeError):
    """An operation that the imagined device cannot do."""


class _Factories(TorchFunctionMode):
    """Python's own numbers become tensors behind the dispatcher's back."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and _is_elsewhere(kwargs.get("device")):
            kwargs["device"] = "cpu"
            return _Far(back(func(*args, **kwargs)))
        if func is Tensor.new_tensor and isinstance(args[0], _Far) and kwargs.get("device") is None:
            return _Far(args[0].numbers.new_tensor(*args[1:], **kwargs))
        if func in _WHOLE:
            return _wrapped(func(*_unwrapped(args), **_unwrapped(kwargs)))
        return func(*args, **kwargs)


_WHOLE = {torch.quantile, Tensor.quantile, torch.nanquantile, Tensor.nanquantile}
"""Functions that change the shape of tensors of their own in place, which the dispatcher cannot follow."""


def _unwrapped(values: Any) -> Any:
    return tree_map(lambda each: back(each) if isinstance(each, Tensor) else each, values)


def _wrapped(values: Any) -> Any:
    return tree_map(lambda each: _Far(each) if isinstance(each, Tensor) else each, values)


class Elsewhere(TorchDispatchMode):
    """Computes with tensors that are elsewhere.

    Raises:
        RuntimeError: an operation mixes them with tensors of the CPU (numbers without dimensions may be mixed).
    """

    def __init__(self) -> None:
        super().__init__()
        self._factories = _Factories()

    def __enter__(self) -> Any:
        self._factories.__enter__()
        return super().__enter__()

    def __exit__(self, *raised: Any) -> Any:
        try:
            return super().__exit__(*raised)
        finally:
            self._factories.__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        met: list[Tensor] = []
        tree_map(lambda each: met.append(each) if isinstance(each, Tensor) else None, (args, kwargs))
        far = any(isinstance(each, _Far) for each in met)
        near = [each for each in met if not isinstance(each, _Far) and each.dim()]
        host = func in _MAY_MIX and func not in _COPIES and not isinstance(met[0], _Far)  # a table that stayed behind
        if far and near and (host or func not in _MAY_MIX):
            raise MixedDevicesError(
                f"expected all tensors to be on the same device, but {func.overloadpacket.__name__} got one of the view's device "
                f"and one of shape {tuple(near[0].shape)} on the CPU"
            )
        if kwargs.get("device") is not None:
            far = _is_elsewhere(kwargs["device"])
            kwargs["device"] = torch.device("cpu")
        result = func(*_unwrapped(args), **_unwrapped(kwargs))
        if func._schema.name.endswith("_") and not func._schema.name.endswith("__"):
            if back(args[0]).shape != args[0].shape:
                raise UnimaginableError(f"{func.overloadpacket.__name__} changes the shape of a tensor in place")
            return args[0]
        return _wrapped(result) if far else result


def _is_elsewhere(device: Any) -> bool:
    return device is not None and torch.device(device).type == ELSEWHERE.type
