"""Fields whose value is worked out when somebody looks at it first: what a strategy does not ask for costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

__all__ = ["deferrable", "deferred"]

T = TypeVar("T")
_NONE = object()


class _Deferred:
    """A value that is yet to be worked out."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def deferred(make: Callable[[], T]) -> T:
    """What a field that is :func:`deferrable` may be given instead of its value: ``make`` is called once, or never."""
    return cast(T, _Deferred(make))


class _Field:
    """A field of a dataclass that holds a value, or how to make it."""

    def __init__(self, name: str, default: Any) -> None:
        self.name, self.default = name, default

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        held = self.default if instance is None else vars(instance).get(self.name, self.default)
        if held is _NONE:
            raise AttributeError(self.name)
        if isinstance(held, _Deferred):
            held = vars(instance)[self.name] = held.make()
        return held

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[self.name] = value


def deferrable(*names: str) -> Callable[[type[T]], type[T]]:
    """Decorator of a dataclass: the fields ``names`` may be given as :func:`deferred`. Their types stay what they are, and so
    does everything that reads them."""

    def decorate(cls: type[T]) -> type[T]:
        for name in names:
            setattr(cls, name, _Field(name, getattr(cls, name, _NONE)))
        return cls

    return decorate
