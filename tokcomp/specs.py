"""Strategies from plain data: a name, a name with its fields, or fields that hold strategies themselves.

A strategy that wraps others declares them as fields of :data:`VisionSpec`, :data:`PrefillSpec` or :data:`CacheSpec`: the
field then takes what a pipeline's stage takes, and gives it back as plain data::

    steps: tuple[PrefillSpec, ...] = Field(description="the filters, one after the other")
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, ValidationError

from tokcomp.deprecation import current_option
from tokcomp.errors import ConfigurationError, suggest
from tokcomp.plugins import is_path
from tokcomp.registry import REGISTRIES
from tokcomp.stages import CachePolicy, PrefillFilter, Strategy, VisionReducer

__all__ = ["CacheSpec", "PrefillSpec", "StrategySpec", "VisionSpec", "build_strategy", "explain"]

StrategySpec = str | Mapping[str, Any] | Strategy | None
"""What a user may give for a stage."""


def build_strategy(stage: str, spec: StrategySpec) -> Any:
    """One stage's strategy object from what a user may give.

    Raises:
        ConfigurationError: an unknown name or field, a value out of range, a strategy of another stage.
    """
    registry = REGISTRIES[stage]
    if spec is None or spec == "none":
        return None
    if isinstance(spec, Strategy):
        if not isinstance(spec, registry.base):
            raise ConfigurationError(
                f"{stage}={spec.name!r} is a strategy of the stage '{spec.stage}', not of '{stage}'"
            )
        return spec
    if isinstance(spec, str):
        name, fields = spec, {}
    elif isinstance(spec, Mapping):
        fields = dict(spec)
        name = _named(stage, fields)
        if name in (None, "none"):
            if name is None or fields:
                raise ConfigurationError(
                    f"{stage}: give a 'name' with the fields {', '.join(map(str, fields)) or '(none)'}"
                )
            return None
    else:
        got = f"the class {spec.__name__}: call it" if isinstance(spec, type) else type(spec).__name__
        raise ConfigurationError(f"{stage}: expected a name, a mapping with 'name' or a strategy, got {got}")
    cls = registry[current_option(stage, str(name))]
    try:
        return cls(**fields)
    except ValidationError as error:
        raise ConfigurationError(explain(stage, cls, error)) from None


def _named(stage: str, fields: dict[str, Any]) -> Any:
    """Take the name, or the dotted path under ``_target_``, out of a strategy's fields."""
    name, target = fields.pop("name", None), fields.pop("_target_", None)
    if target is None:
        return name
    if name is not None:
        raise ConfigurationError(f"{stage}: give 'name' ({name}) or '_target_' ({target}), not both")
    if not is_path(str(target)):
        raise ConfigurationError(f"{stage}: _target_={target} is no dotted path: give my_pkg.my_idea:MyIdea")
    return target


def explain(stage: str, cls: type[Strategy], error: ValidationError) -> str:
    """One line that says what is wrong with the fields of a strategy and what it takes."""
    known = tuple(cls.model_fields)
    lines: dict[
        str, str
    ] = {}  # by field: where several types are allowed, pydantic tells of each, and the first is enough
    for problem in error.errors():
        field = str(problem["loc"][0]) if problem["loc"] else ""
        cause = problem.get("ctx", {}).get("error")
        if problem["type"] == "extra_forbidden":
            line = f"'{field}' is not a setting of {stage} '{cls.name}'{suggest(field, known)} it takes: {', '.join(known)}"
        elif not field:
            line = f"{stage} '{cls.name}': {_plain(problem['msg'])}"
        elif isinstance(cause, ConfigurationError):  # of a strategy inside this one, which names its own field
            line = f"{stage}.{cls.name}.{_path(problem['loc'])}: {cause}"
        else:
            line = f"{stage}.{cls.name}.{field}={problem['input']!r}: {_plain(problem['msg'])}"
        lines.setdefault(field, line)
    return "; ".join(lines.values())


def _path(loc: tuple[int | str, ...]) -> str:
    """``("steps", 1)`` as ``steps[1]``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def _plain(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _inner(stage: str, spec: StrategySpec) -> Any:
    """A strategy inside another one: there must be one."""
    strategy = build_strategy(stage, spec)
    if strategy is None:
        raise ConfigurationError(f"give the name of a {stage} strategy, not none")
    return strategy


def _data(strategy: Strategy) -> dict[str, object]:
    return strategy.spec()


VisionSpec = Annotated[VisionReducer, BeforeValidator(partial(_inner, "vision")), PlainSerializer(_data)]
PrefillSpec = Annotated[PrefillFilter, BeforeValidator(partial(_inner, "prefill")), PlainSerializer(_data)]
CacheSpec = Annotated[CachePolicy, BeforeValidator(partial(_inner, "cache")), PlainSerializer(_data)]
