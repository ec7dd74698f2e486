"""The version of the code that decides results: part of a record's key, so that changed code is a new run."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from tokcomp.plugin_signals import PluginSignal
from tokcomp.plugins import import_object, points
from tokcomp.stages import Strategy

if TYPE_CHECKING:
    from tokcomp.experiment.config import RunConfig

__all__ = ["code_version", "digest_of"]

_SILENT = ("cli", "report", "testing")
"""Packages of tokcomp that show results and never make them."""
_SHARED = frozenset({"tokcomp", "pydantic", "abc", "builtins", "typing"})
"""Packages of base classes that are versioned otherwise."""


def digest_of(files: Iterable[Path], root: Path) -> str:
    """SHA-256 over names and contents of source files, hexadecimal, 16 characters."""
    digest = hashlib.sha256()
    for path in sorted(files):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


@cache
def _own() -> str:
    package = Path(__file__).resolve().parent.parent
    files = (path for path in package.rglob("*.py") if path.relative_to(package).parts[0] not in _SILENT)
    return digest_of(files, package)


@cache
def _foreign(package: str) -> str:
    """Sources of a package that is not tokcomp's: all its Python files, or the one of a module or script; what has no file (a
    notebook's) counts by its name alone."""
    module = sys.modules.get(package)
    spec = importlib.util.find_spec(package) if module is None else module.__spec__
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if folders:  # a namespace package may lie in several
        return "+".join(digest_of(Path(folder).rglob("*.py"), Path(folder)) for folder in folders)
    named = spec.origin if spec is not None else getattr(module, "__file__", None)
    if not named or not Path(named).is_file():
        return package
    return digest_of([Path(named)], Path(named).parent)


def _parts(value: object) -> Iterator[object]:
    """A strategy or benchmark and those inside it, and what provides the signals that they read."""
    if isinstance(value, BaseModel):
        yield value
        for field in type(value).model_fields:
            yield from _parts(getattr(value, field))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _parts(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _parts(item)


def code_version(config: RunConfig) -> str:
    """What the code is that a run would execute: tokcomp's sources, and those of all plug-ins that it uses, strategies inside
    others included."""
    parts = [
        part for stage in (config.vision, config.prefill, config.cache, config.benchmark) for part in _parts(stage)
    ]
    modules = {cls.__module__ for part in parts for cls in type(part).__mro__}
    read = {
        each
        for part in parts
        if isinstance(part, Strategy)
        for each in part.signals()
        if isinstance(each, PluginSignal)
    }
    modules |= {each.provider.__module__ for each in read}
    # Which model it will be is known only when it is loaded, so that the adapters of all installed packages count.
    modules |= {point.module for point in points("tokcomp.models")}
    if config.model.adapter is not None:
        modules.add(import_object(config.model.adapter).__module__)
    packages = {module.partition(".")[0] for module in modules} - _SHARED
    return "-".join([_own(), *(_foreign(package) for package in sorted(packages))])
