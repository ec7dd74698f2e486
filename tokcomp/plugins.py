"""What other packages bring along: found by entry point, imported by dotted path, and told where it comes from."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from tokcomp.errors import PluginError, PluginWarning, TokcompError

__all__ = ["GROUPS", "NoModuleError", "Origin", "dotted_path", "import_file", "import_module", "import_object", "is_path",
           "load_group", "one_line", "origin_of", "points", "told"]  # fmt: skip

GROUPS = ("tokcomp.strategies", "tokcomp.models", "tokcomp.benchmarks", "tokcomp.callbacks")
"""The entry-point groups by which an installed package adds something."""

_FILES: set[str] = set()
"""Modules that came from a file, which another file of the same name may follow."""


class NoModuleError(PluginError):
    """A module that is neither installed nor in the working folder."""


@dataclass(frozen=True)
class Origin:
    """Where something that is registered comes from.

    Attributes:
        kind: ``built-in``, ``package`` (an installed distribution that has an entry point) or ``module`` (Python code that
            was imported: a script's decorator, or a dotted path).
        name: the distribution, or the module. ``version``: the distribution's; empty for a module.
    """

    kind: Literal["built-in", "package", "module"]
    name: str
    version: str = ""

    def __str__(self) -> str:
        return self.kind if self.kind == "built-in" else f"{self.name} {self.version}".strip()


@cache
def points(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of a group, by distribution and name, as this process found them first."""
    found = entry_points(group=group)
    return tuple(sorted(found, key=lambda point: (_distribution(point), point.name)))


def _distribution(point: EntryPoint) -> str:
    return "" if point.dist is None else point.dist.name


def told(point: EntryPoint) -> str:
    """An entry point for messages: ``plug-in 'mine' (my_pkg.ideas, my-package 1.0)``."""
    dist = "" if point.dist is None else f", {point.dist.name} {point.dist.version}"
    return f"plug-in '{point.name}' ({point.value}{dist})"


def load_group(group: str, take: Callable[[EntryPoint, Any], None], undo: Callable[[], None] = lambda: None) -> None:
    """Import every entry point of a group; one that fails is named in a warning and disables nothing else.

    Args:
        group: the group.
        take: given each entry point and what it names; refuses by raising.
        undo: called after a failure, to take back what the plug-in had registered by then.
    """
    for point in points(group):
        try:
            take(point, point.load())
        except Exception as error:
            undo()
            warnings.warn(f"{told(point)} was left out: {one_line(error)}", PluginWarning, stacklevel=3)


def one_line(error: BaseException) -> str:
    """What went wrong, on one line: tokcomp's own errors speak for themselves, others are named."""
    if isinstance(error, TokcompError):
        return " ".join(str(error).split())
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def is_path(name: str) -> bool:
    """Whether a name is a dotted path (``my_pkg.my_idea:MyIdea`` or ``my_pkg.my_idea.MyIdea``): registered names have
    neither colon nor full stop."""
    return ":" in name or "." in name


def import_object(path: str) -> Any:
    """What ``my_pkg.my_idea:MyIdea`` (or ``my_pkg.my_idea.MyIdea``) names. Modules of the working folder are found, too.

    Raises:
        PluginError: no such module or no such name in it, or the module fails when it is imported; one line.
    """
    module_name, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    if not all(part.isidentifier() for part in [*module_name.split("."), *attribute.split(".")]):
        raise PluginError(f"'{path}' is no dotted path: give module:Class, such as my_pkg.my_idea:MyIdea")
    found: Any = import_module(module_name, path)
    for name in attribute.split("."):
        if not hasattr(found, name):
            known = ", ".join(sorted(each for each, value in vars(found).items() if isinstance(value, type)
                                     and getattr(value, "__module__", "") == module_name))  # fmt: skip
            raise PluginError(f"'{path}': {module_name} has no '{name}'; classes in it: {known or 'none'}")
        found = getattr(found, name)
    return found


def import_module(name: str, given: str | None = None) -> ModuleType:
    """A module by its dotted name; ``given`` is what a user wrote, for messages. Modules of the working folder are found, too.

    Raises:
        NoModuleError: there is none.
        PluginError: it fails when it is imported; one line.
    """
    with _told_in_one_line(given or name, name):
        _search_working_folder(name.partition(".")[0])
        return importlib.import_module(name)


def import_file(path: Path) -> ModuleType:
    """A Python file as the module of its name; it may import from the working folder.

    Raises:
        PluginError: it fails when it is imported, or another module has its name; one line.
    """
    there = None if path.stem in _FILES else sys.modules.get(path.stem)
    if there is not None and there.__file__ is not None and Path(there.__file__).resolve() == path.resolve():
        return there
    if there is not None or path.stem in sys.stdlib_module_names:
        raise PluginError(f"'{path}' would take the place of the module '{path.stem}': give the file another name")
    with _told_in_one_line(str(path), path.stem):
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # pickle looks classes up there
        _FILES.add(path.stem)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[path.stem]
            raise
        return module


@contextmanager
def _told_in_one_line(given: str, module: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            where = "" if given == error.name else f"'{given}': "
            raise NoModuleError(
                f"{where}there is no module '{error.name}'; install its package, or run where its file lies"
            ) from None
        raise PluginError(f"'{given}' cannot be imported: {one_line(error)}") from error
    except Exception as error:
        raise PluginError(f"'{given}' cannot be imported: {one_line(error)}") from error


def _search_working_folder(top: str) -> None:
    """The working folder joins the module search where it holds ``top`` and no other place does: a console script, other
    than ``python -m``, does not look there by itself."""
    here = Path.cwd()
    if top not in sys.modules and ((here / f"{top}.py").is_file() or (here / top).is_dir()):
        importlib.invalidate_caches()
        if importlib.util.find_spec(top) is None:
            sys.path.append(str(here))


def dotted_path(cls: type) -> str:
    """``module:QualifiedName``, or empty for what cannot be imported by one: a script's or a notebook's class, or one that
    was defined inside a function."""
    module = sys.modules.get(cls.__module__)
    if module is None or cls.__module__ == "__main__" or getattr(module, "__spec__", None) is None:
        return ""
    return "" if "<locals>" in cls.__qualname__ else f"{cls.__module__}:{cls.__qualname__}"


def origin_of(thing: Any) -> Origin:
    """Where a class or function comes from, by the module that defines it."""
    module: str = thing.__module__
    if module.partition(".")[0] == "tokcomp":
        return Origin("built-in", "tokcomp", sys.modules["tokcomp"].__version__)
    for owned, name, release in _owned():
        if module == owned or module.startswith(f"{owned}."):
            return Origin("package", name, release)
    return Origin("module", module)


@cache
def _owned() -> tuple[tuple[str, str, str], ...]:
    """Top-level packages of the installed plug-ins, with distribution and version."""
    found = {(point.module.partition(".")[0], point.dist.name, point.dist.version)
             for group in GROUPS for point in points(group) if point.dist is not None}  # fmt: skip
    return tuple(sorted(found))
