"""What users and plug-ins rely on, one line each: public names with their signatures, commands with their options, strategies
with their fields.

    python -m tests.api.surface          # writes tests/api/public.txt
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import sys
from collections.abc import Iterator
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tokcomp import catalog
from tokcomp.cli.main import COMMANDS
from tokcomp.experiment.overrides import GROUPS

FILE = Path(__file__).with_name("public.txt")
MODULES = (
    "tokcomp",
    "tokcomp.benchmarks.base",
    "tokcomp.budget",
    "tokcomp.deprecation",
    "tokcomp.errors",
    "tokcomp.models.adapter",
    "tokcomp.plugin_signals",
    "tokcomp.specs",
    "tokcomp.stages",
    "tokcomp.testing",
)
"""The modules whose ``__all__`` is public. Everything else may change in any release."""


def surface() -> list[str]:
    """Every line, sorted within its kind."""
    names = {line for name in MODULES for line in _module(import_module(name), name)}
    return [*sorted(names), *sorted(_commands()), *sorted(_strategies())]


def _module(module: Any, name: str) -> Iterator[str]:
    for public in module.__all__:
        if not public.startswith("__"):
            yield from _named(f"{name}.{public}", getattr(module, public))


def _named(path: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value) and issubclass(value, Enum):
        yield f"{path}: {', '.join(sorted(member.name for member in value))}"
    elif inspect.isclass(value):
        yield f"{path}({', '.join(base.__name__ for base in value.__bases__)})"
        yield from sorted(_members(path, value))
    elif inspect.isfunction(value):
        yield f"{path}{_signature(value)}"
    else:
        yield f"{path}: {type(value).__name__}"


def _members(path: str, cls: type) -> Iterator[str]:
    if issubclass(cls, BaseModel):
        for name, field in cls.model_fields.items():
            default = (
                "(must be given)" if field.is_required() else _default(field.get_default(call_default_factory=True))
            )
            yield f"{path}.{name} = {default}"
    elif dataclasses.is_dataclass(cls):
        yield from (f"{path}.{one.name}" for one in dataclasses.fields(cls) if not one.name.startswith("_"))
    for name, value in vars(cls).items():
        if name.startswith("_") or name in ("model_config", "model_fields"):
            continue
        plain = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if inspect.isfunction(plain):
            yield f"{path}.{name}{_signature(plain)}"
        elif isinstance(value, property):
            yield f"{path}.{name}: property"


def _signature(function: Any) -> str:
    """Parameters with their kinds and whether they have a default; annotations may become more exact in any release."""
    parameters = []
    for one in inspect.signature(function).parameters.values():
        default = inspect.Parameter.empty if one.default is inspect.Parameter.empty else _Shown(_default(one.default))
        parameters.append(one.replace(annotation=inspect.Parameter.empty, default=default))
    return str(inspect.Signature(parameters))


class _Shown:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _default(value: Any) -> str:
    """A default without what differs between runs, such as addresses."""
    return repr(value) if isinstance(value, str | int | float | bool | tuple | type(None)) else "..."


def _commands() -> Iterator[str]:
    for name in COMMANDS:
        parser = argparse.ArgumentParser()
        import_module(f"tokcomp.cli.{name}").add_arguments(parser)
        told = [option for action in parser._actions for option in action.option_strings or [action.dest.upper()]]
        yield f"$ tokcomp {name} {' '.join(sorted(told))}"
    for root, groups in GROUPS.items():
        yield f"$ tokcomp {root}: groups {', '.join(groups)}"


def _strategies() -> Iterator[str]:
    for one in catalog.entries():
        if one.origin == "built-in":
            yield f"{one.stage}={one.name}"
            yield from (f"{one.stage}={one.name} {field.name}={field.default}" for field in one.settings)


if __name__ == "__main__":
    FILE.write_text("\n".join(surface()) + "\n", encoding="utf-8")
    sys.stdout.write(f"{FILE}: {len(surface())} lines\n")
