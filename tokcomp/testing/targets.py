"""What a user names on the command line as the strategies to be checked."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from tokcomp.errors import ConfigurationError, suggest
from tokcomp.plugins import NoModuleError, import_file, import_module
from tokcomp.registry import REGISTRIES
from tokcomp.stages import Strategy

__all__ = ["every_strategy", "find_strategies"]


def every_strategy() -> list[type[Strategy]]:
    """All registered strategies, stage by stage."""
    return [cls for registry in REGISTRIES.values() for cls in registry.values()]


def find_strategies(target: str) -> list[type[Strategy]]:
    """The strategies that ``STAGE/NAME``, ``module``, ``module:Class`` or ``file.py`` stand for.

    Raises:
        ConfigurationError: there is none.
        PluginError: its module or file cannot be imported.
    """
    stage, slash, name = target.partition("/")
    if slash and stage in REGISTRIES:
        return [REGISTRIES[stage][name]]
    module_name, colon, class_name = target.partition(":")
    module = _imported(module_name)
    return [_class_of(module, class_name)] if colon else _registered_in(module)


def _registered_as(name: str) -> list[str]:
    return [f"{stage}/{name}" for stage, registry in REGISTRIES.items() if name in registry]


def _imported(name: str) -> ModuleType:
    """A module by its dotted name, or a file; modules of the working folder are found, installed or not."""
    if not name:
        raise ConfigurationError("give STAGE/NAME, a module, module:Class or a file.py to check, or --all")
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise ConfigurationError(f"there is no file {name}")
        return import_file(Path(name))
    try:
        return import_module(name)
    except NoModuleError as error:
        likely = " or ".join(_registered_as(name))
        hint = f"did you mean {likely}?" if likely else "a registered strategy is STAGE/NAME, such as vision/mustdrop"
        raise ConfigurationError(f"{error}; {hint}") from None


def _class_of(module: ModuleType, name: str) -> type[Strategy]:
    found = getattr(module, name, None)
    if found is None:
        known = tuple(key for key, value in vars(module).items() if _is_strategy(value))
        raise ConfigurationError(f"{module.__name__} has no '{name}'{suggest(name, known)} its strategies: "
                                 f"{', '.join(known) or 'none'}")  # fmt: skip
    if not _is_strategy(found):
        raise ConfigurationError(
            f"{module.__name__}:{name} is not a strategy: it must be a subclass of VisionReducer, PrefillFilter or CachePolicy"
        )
    return found


def _is_strategy(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Strategy)


def _registered_in(module: ModuleType) -> list[type[Strategy]]:
    name = module.__name__
    own = [cls for cls in every_strategy() if cls.__module__ == name or cls.__module__.startswith(name + ".")]
    if not own:
        raise ConfigurationError(
            f"{name} registers no strategy: decorate the class with @VISION.register(\"name\") (or PREFILL, CACHE), or give "
            f"{name}:Class"
        )  # fmt: skip
    return own
