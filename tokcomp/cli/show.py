"""One strategy: what it does, its fields with defaults and bounds, its paper and its needs.

examples:
  tokcomp show vision/mustdrop"""

from __future__ import annotations

import argparse
import inspect
import re
import types
from typing import Any, Literal, Union, get_args, get_origin

from tokcomp.errors import ConfigurationError
from tokcomp.stages import Strategy
from tokcomp.types import Signal

__all__ = ["add_arguments", "execute", "needs_text"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("strategy", metavar="STAGE/NAME", help="such as vision/mustdrop")


def execute(options: argparse.Namespace) -> int:
    from rich.console import Console

    from tokcomp.registry import REGISTRIES

    stage, _, name = options.strategy.partition("/")
    if not name:
        holding = [known for known, registry in REGISTRIES.items() if stage in registry]
        hint = f"; did you mean {' or '.join(f'{known}/{stage}' for known in holding)}?" if holding else ""
        raise ConfigurationError(f"give STAGE/NAME, such as vision/mustdrop, not '{options.strategy}'{hint}")
    if stage not in REGISTRIES:
        raise ConfigurationError(f"unknown stage '{stage}': known are {', '.join(REGISTRIES)}")
    strategy = REGISTRIES[stage][name]
    console = Console()
    console.print(f"{stage}={name}", style="bold", highlight=False)
    console.print(prose(strategy.__doc__ or ""), highlight=False, markup=False)
    console.print(_fields(strategy))
    console.print(f"paper: {strategy.paper or '-'}", highlight=False, markup=False)
    console.print(f"needs: {needs_text(strategy) or 'nothing beyond the tokens'}", highlight=False)
    if told := without_cls(strategy):
        console.print(f"without a CLS token: {told}", highlight=False)
    return 0


def without_cls(strategy: type[Any]) -> str:
    """What a strategy does on a tower without CLS token; empty where that is nothing to it."""
    if not strategy.needs & {Signal.CLS_ATTENTION, Signal.UNSPLIT_ATTENTION}:
        return ""
    if strategy.without_cls == "refuse":
        return "refused when the pipeline attaches"
    return "takes the attention that each token receives, the mean over heads and over all of the image's own tokens"


def _fields(strategy: type[Any]) -> object:
    from rich.table import Table

    table = Table(title="fields", title_justify="left")
    for column in ("field", "type", "default", "meaning"):
        table.add_column(column, overflow="fold", no_wrap=column == "field")
    for name, field in strategy.model_fields.items():
        default = "(must be given)" if field.is_required() else repr(field.get_default(call_default_factory=True))
        bounds = [bound for item in field.metadata if (bound := _bound(item))]
        table.add_row(name, _with_bounds(type_text(field.annotation), bounds), default, field.description or "")
    return table


def needs_text(strategy: type[Strategy], form: str = "{}") -> str:
    """The signals that a strategy reads beyond the tokens, each written in ``form``; empty where there are none."""
    told = [form.format(signal.value) for signal in sorted(strategy.needs)]
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
