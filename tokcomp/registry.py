"""Strategies by name: one registry per stage, filled by decorator and by installed plug-ins."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Annotated, Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError
from pydantic.fields import FieldInfo

from tokcomp.errors import PluginError, UnknownStrategyError
from tokcomp.plugins import Origin, dotted_path, import_object, is_path, load_group, origin_of
from tokcomp.stages import CachePolicy, PrefillFilter, Strategy, VisionReducer

__all__ = ["CACHE", "PREFILL", "REGISTRIES", "VISION", "Registry"]

ENTRY_POINT_GROUP = "tokcomp.strategies"


S = TypeVar("S", bound=Strategy)


class Registry(Mapping[str, type[S]], Generic[S]):
    """Read-only mapping from a registered name to a strategy class of one stage.

    The built-in strategies of the stage are imported at the first look, installed plug-ins (entry-point group
    ``tokcomp.strategies``) right after them; a plug-in that fails to import is reported and disables nothing else. A dotted
    path (``my_pkg.my_idea:MyIdea``) is looked up as well, and is not listed among the names.
    """

    def __init__(self, stage: str, base: Any) -> None:  # an abstract class, which type[S] would refuse
        self.stage = stage
        self.base = base
        self._classes: dict[str, type[S]] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[type[S]], type[S]]:
        """Class decorator that registers a strategy under ``name``.

        Raises:
            PluginError: the class is not a concrete strategy of this stage, one of its fields cannot be a setting, or the
                name is taken.
        """
        given: object = name
        if not isinstance(given, str):  # the decorator without its call would leave a function in the class's place
            written = f"{self.stage.upper()}.register"
            raise PluginError(f'{written} takes the strategy\'s name, not {given!r}: write @{written}("my_idea")')

        def add(cls: type[S]) -> type[S]:
            if getattr(cls, "__module__", "").partition(".")[0] != "tokcomp":
                import_module(f"tokcomp.{self.stage}")  # the built-in names are there first
            self._refuse_wrong(name, cls)
            cls.name = name
            cls.home = dotted_path(cls) if origin_of(cls).kind == "module" else ""
            self._classes[name] = cls
            return cls

        return add

    def at(self, path: str) -> type[S]:
        """The strategy class that a dotted path names; it need not be registered.

        Raises:
            PluginError: there is none, or it is not a concrete strategy of this stage.
        """
        self._load()
        cls = import_object(path)
        self._refuse_class(f"{self.stage}={path}", cls)
        if self._classes.get(cls.name) is not cls:
            cls.home = dotted_path(cls) or path
            if not cls.__dict__.get("name"):
                cls.name = cls.home
        return cls

    def origin(self, name: str) -> Origin:
        """Where the strategy comes from: built in, an installed package with its version, or a module."""
        return origin_of(self[name])

    def _refuse_wrong(self, name: str, cls: type) -> None:
        where = (
            f"{self.stage} strategy '{name}' ({getattr(cls, '__module__', '?')}.{getattr(cls, '__qualname__', cls)})"
        )
        self._refuse_class(where, cls)
        if not name or name != name.lower() or not name.replace("_", "").isalnum() or name == "none":
            raise PluginError(f"{where}: a name has lower-case letters, digits and underscores, and 'none' is reserved")
        taken = self._classes.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise PluginError(f"{where}: the name is taken by {taken.__module__}.{taken.__qualname__}; choose another")

    def _refuse_class(self, where: str, cls: Any) -> None:
        if not isinstance(cls, type) or not issubclass(cls, self.base):
            raise PluginError(f"{where} is not a subclass of tokcomp.{self.base.__name__}")
        if inspect.isabstract(cls):
            missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
            raise PluginError(f"{where} does not define {missing}")
        if cls.__module__.partition(".")[0] != "tokcomp":  # built-in ones are held by the tests
            for field, info in getattr(cls, "model_fields", {}).items():
                _refuse_field(where, field, info)

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        import_module(f"tokcomp.{self.stage}")
        load_plugins()

    def __getitem__(self, name: str) -> type[S]:
        given: object = name
        if not isinstance(given, str):
            raise UnknownStrategyError(self.stage, str(given), tuple(self))
        if is_path(name):
            return self.at(name)
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

_RESERVED = frozenset({"name", "stage", "needs", "paper", "home"})
_plugins_loaded = False


def _refuse_field(where: str, field: str, info: FieldInfo) -> None:
    """Refuse a field that could not stand in a configuration file."""
    if field in _RESERVED:
        raise PluginError(f"{where}: '{field}' cannot be a field, the interface has it: annotate it as ClassVar")
    told = getattr(info.annotation, "__name__", info.annotation)
    try:
        annotation: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
        kind: TypeAdapter[Any] = TypeAdapter(annotation)
        kind.json_schema()
    except (PydanticInvalidForJsonSchema, PydanticUserError):
        raise PluginError(
            f"{where}: the field '{field}' has the type {told}, which cannot stand in a configuration: use numbers, "
            "strings, booleans, Literal, tuples of them, or a model of such fields"
        ) from None
    if info.is_required():
        return
    try:
        kind.validate_python(info.get_default(call_default_factory=True))
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise PluginError(f"{where}: the default of '{field}' does not fit its type: {reason}") from None


def load_plugins() -> None:
    """Import every installed plug-in once; one that fails is named in a warning, leaves nothing behind, and the others go on."""
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    for stage in REGISTRIES:
        import_module(f"tokcomp.{stage}")
    good = {stage: dict(registry._classes) for stage, registry in REGISTRIES.items()}

    def take(point: EntryPoint, found: Any) -> None:
        if isinstance(found, type) and issubclass(found, Strategy) and found.stage in REGISTRIES:
            registry = REGISTRIES[found.stage]
            if found not in registry._classes.values():
                registry.register(point.name)(found)
        elif not isinstance(found, ModuleType):
            raise PluginError(f"it names {found!r}, which is neither a module nor a strategy class")
        good.update({stage: dict(registry._classes) for stage, registry in REGISTRIES.items()})

    def undo() -> None:
        for stage, registry in REGISTRIES.items():
            registry._classes = dict(good[stage])

    load_group(ENTRY_POINT_GROUP, take, undo)
