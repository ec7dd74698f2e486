"""Strategies by name: one registry per stage, filled by decorator and by installed plug-ins."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from tokcomp.errors import PluginError, PluginWarning, UnknownStrategyError
from tokcomp.stages import CachePolicy, PrefillFilter, Strategy, VisionReducer

__all__ = ["CACHE", "PREFILL", "REGISTRIES", "VISION", "Registry"]

ENTRY_POINT_GROUP = "tokcomp.strategies"


S = TypeVar("S", bound=Strategy)


class Registry(Mapping[str, type[S]], Generic[S]):
    """Read-only mapping from a registered name to a strategy class of one stage.

    The built-in strategies of the stage are imported at the first look, installed plug-ins (entry-point group
    ``tokcomp.strategies``) right after them; a plug-in that fails to import is reported and disables nothing else.
    """

    def __init__(self, stage: str, base: Any) -> None:  # an abstract class, which type[S] would refuse
        self.stage = stage
        self.base = base
        self._classes: dict[str, type[S]] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[type[S]], type[S]]:
        """Class decorator that registers a strategy under ``name``.

        Raises:
            PluginError: the class is not a concrete strategy of this stage, or the name is taken.
        """

        def add(cls: type[S]) -> type[S]:
            self._refuse_wrong(name, cls)
            cls.name = name
            self._classes[name] = cls
            return cls

        return add

    def _refuse_wrong(self, name: str, cls: type) -> None:
        where = f"{self.stage} strategy '{name}' ({cls.__module__}.{cls.__qualname__})"
        if not isinstance(cls, type) or not issubclass(cls, self.base):
            raise PluginError(f"{where} is not a subclass of tokcomp.{self.base.__name__}")
        if inspect.isabstract(cls):
            missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
            raise PluginError(f"{where} does not define {missing}")
        if not name or name != name.lower() or not name.replace("_", "").isalnum() or name == "none":
            raise PluginError(f"{where}: a name has lower-case letters, digits and underscores, and 'none' is reserved")
        taken = self._classes.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise PluginError(f"{where}: the name is taken by {taken.__module__}.{taken.__qualname__}; choose another")

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        import_module(f"tokcomp.{self.stage}")
        load_plugins()

    def __getitem__(self, name: str) -> type[S]:
        self._load()
        try:
            return self._classes[name]
        except KeyError:
            raise UnknownStrategyError(self.stage, name, tuple(self)) from None

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._classes

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._classes))

    def __len__(self) -> int:
        self._load()
        return len(self._classes)

    def __repr__(self) -> str:
        return f"Registry({self.stage!r}: {', '.join(self)})"


VISION: Registry[VisionReducer] = Registry("vision", VisionReducer)
PREFILL: Registry[PrefillFilter] = Registry("prefill", PrefillFilter)
CACHE: Registry[CachePolicy] = Registry("cache", CachePolicy)
REGISTRIES: dict[str, Registry[Any]] = {"vision": VISION, "prefill": PREFILL, "cache": CACHE}

_plugins_loaded = False


def load_plugins() -> None:
    """Import every installed plug-in once; one that fails is named in a warning and the others go on."""
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            point.load()
        except Exception as error:
            warnings.warn(
                f"plug-in '{point.name}' ({point.value}) was left out: {type(error).__name__}: {error}",
                PluginWarning,
                stacklevel=2,
            )
