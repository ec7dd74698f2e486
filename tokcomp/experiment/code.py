"""The version of the code that decides results: part of a record's key, so that changed code is a new run."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokcomp.experiment.config import RunConfig

__all__ = ["code_version", "digest_of"]

_SILENT = ("cli", "report", "testing")
"""Packages of tokcomp that show results and never make them."""


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
    """Sources of an installed plug-in; a module that has no file (a notebook's) counts by its name alone."""
    spec = importlib.util.find_spec(package) if package not in sys.modules else sys.modules[package].__spec__
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        return package
    origin = Path(spec.origin)
    if origin.name != "__init__.py":
        return digest_of([origin], origin.parent)
    return digest_of(origin.parent.rglob("*.py"), origin.parent)


def code_version(config: RunConfig) -> str:
    """What the code is that a run would execute: tokcomp's sources, and those of the plug-ins that it uses."""
    parts = (config.vision, config.prefill, config.cache, config.benchmark)
    packages = {type(part).__module__.partition(".")[0] for part in parts if part is not None} - {"tokcomp"}
    return "-".join([_own(), *(_foreign(package) for package in sorted(packages))])
