"""Asks the strategy classes themselves what they are: the slow way, which imports torch and all strategies."""

from __future__ import annotations

import inspect
import re
import types
import warnings
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from tokcomp.catalog import STAGES, Entry, Setting
from tokcomp.errors import PluginWarning, TokcompError
from tokcomp.plugins import one_line, origin_of
from tokcomp.registry import REGISTRIES
from tokcomp.stages import Strategy
from tokcomp.types import Signal

__all__ = ["ask", "ask_built_in", "ask_plugins", "needs_text", "prose", "type_text", "without_cls"]


def ask_built_in() -> list[Entry]:
    """Every strategy of this package, stage by stage and by name."""
    return [ask(stage, name, cls) for stage in STAGES for name, cls in sorted(REGISTRIES[stage].items())
            if origin_of(cls).kind == "built-in"]  # fmt: skip


def ask_plugins(chosen: Mapping[tuple[str, str], str]) -> tuple[list[Entry], bool]:
    """Every strategy of installed packages, and those that option files ``chosen`` by stage and name; whether all of them
    could be asked. Those that could not are named in warnings."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", PluginWarning)
        found = [ask(stage, name, cls) for stage in STAGES for name, cls in sorted(REGISTRIES[stage].items())
                 if origin_of(cls).kind == "package"]  # fmt: skip
    failed = [str(one.message) for one in said if issubclass(one.category, PluginWarning)]
    for (stage, name), path in chosen.items():
        try:
            found.append(ask(stage, name, REGISTRIES[stage].at(path)))
        except TokcompError as error:
            failed.append(f"configs/{stage}/{name}.yaml was left out: {one_line(error)}")
    for line in failed:
        warnings.warn(line, PluginWarning, stacklevel=2)
    return found, not failed


def ask(stage: str, name: str, cls: type[Any]) -> Entry:
    """What one class says of itself."""
    settings = []
    for field, info in cls.model_fields.items():
        default = "(must be given)" if info.is_required() else repr(info.get_default(call_default_factory=True))
        bounds = [bound for item in info.metadata if (bound := _bound(item))]
        kind = _with_bounds(type_text(info.annotation), bounds)
        settings.append(Setting(field, kind, default, info.description or "", _choices(info.annotation)))
    summary = (cls.__doc__ or "").strip().partition("\n")[0]
    return Entry(stage, name, summary, prose(cls.__doc__ or ""), needs_text(cls), cls.paper, without_cls(cls),
                 str(origin_of(cls)), tuple(settings))  # fmt: skip


def _choices(kind: Any) -> tuple[str, ...]:
    """The values of a type that can be listed."""
    if get_origin(kind) is Literal:
        return tuple(str(part) for part in get_args(kind))
    if kind is bool:
        return ("true", "false")
    if kind is type(None):
        return ("null",)
    return tuple(choice for part in get_args(kind) for choice in _choices(part)) if get_origin(kind) else ()


def without_cls(strategy: type[Any]) -> str:
    """What a strategy does on a tower without CLS token; empty where that is nothing to it."""
    if not strategy.needs & {Signal.CLS_ATTENTION, Signal.UNSPLIT_ATTENTION}:
        return ""
    if strategy.without_cls == "refuse":
        return "refused when the pipeline attaches"
    return "takes the attention that each token receives, the mean over heads and over all of the image's own tokens"


def needs_text(strategy: type[Strategy], form: str = "{}") -> str:
    """The signals that a strategy reads beyond the tokens, each written in ``form``; empty where there are none."""
    told = [form.format(signal.value) for signal in sorted(strategy.needs, key=lambda each: each.value)]
    if strategy.signals is not Strategy.signals:
        told.append("what its steps need")
    return ", ".join(told)


def prose(docstring: str) -> str:
    """A docstring for reading: paragraphs on one line each, without markup and without the list of attributes."""
    text = inspect.cleandoc(docstring).partition("\nAttributes:\n")[0].strip()
    text = re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "")
    # A line break inside a paragraph or inside an item of a list is no more than a place where a line was full.
    return re.sub(r"(?<!\n)\n(?!\n|\s*- )\s*", " ", text)


def _with_bounds(kind: str, bounds: list[str]) -> str:
    """Bounds stand behind the type that they bind, not behind ``null``."""
    told = " ".join([kind.removesuffix(" | null"), *bounds])
    return f"{told} | null" if kind.endswith(" | null") else told


def _bound(item: object) -> str:
    """A constraint of pydantic's as it is written: ``>= 0``."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "min_length": "length >="}
    told = [f"{sign} {getattr(item, name)}" for name, sign in signs.items() if getattr(item, name, None) is not None]
    return ", ".join(told)


def type_text(kind: Any) -> str:
    """A type as a user would say it: ``int | float < 1 | null``, ``'image' | 'published'``."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is type(None):
        return "null"
    if origin is Literal:
        return " | ".join(repr(part) for part in parts)
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(type_text(part) for part in parts))
    if hasattr(kind, "__metadata__"):
        bounds = [bound for item in kind.__metadata__ for bound in _inner_bounds(item)]
        return " ".join([type_text(kind.__origin__), *bounds])
    if origin is tuple:
        return f"list of {type_text(parts[0])}"
    if getattr(kind, "stage", ""):
        return f"{kind.stage} strategy"
    return getattr(kind, "__name__", str(kind))


def _inner_bounds(item: Any) -> list[str]:
    return [bound for part in getattr(item, "metadata", [item]) if (bound := _bound(part))]
