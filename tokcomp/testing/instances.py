"""Strategy objects for the checks: from a class, anew from its fields, and their names in reports."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import ValidationError

from tokcomp.errors import ConfigurationError
from tokcomp.stages import Strategy

__all__ = ["UncheckableError", "fresh", "instance", "title"]


class UncheckableError(ConfigurationError):
    """Something that cannot be held against the contract as it was given."""


def instance(strategy: Any) -> Strategy:
    """A strategy object from a class or an object.

    Raises:
        UncheckableError: it is no strategy, is abstract, or has fields that must be given.
    """
    if isinstance(strategy, Strategy):
        return strategy
    if not (isinstance(strategy, type) and issubclass(strategy, Strategy)):
        raise UncheckableError(
            "expected a strategy (a subclass of VisionReducer, PrefillFilter or CachePolicy, or an object of one), got "
            f"{strategy!r}"
        )
    if inspect.isabstract(strategy):
        missing = ", ".join(sorted(strategy.__abstractmethods__))
        raise UncheckableError(f"{strategy.__qualname__} cannot be checked: it does not define {missing}")
    try:
        return strategy()
    except ValidationError as error:
        fields = ", ".join(str(problem["loc"][0]) for problem in error.errors() if problem["loc"])
        raise UncheckableError(
            f"{strategy.__qualname__} cannot be checked with its defaults ({fields or error}): give an object with these fields "
            "to check_strategy or parametrize_with_checks"
        ) from error


def fresh(strategy: Strategy) -> Any:
    """A new object of the same fields, that nobody has asked anything."""
    given = {name: getattr(strategy, name) for name in strategy.model_fields_set}
    return type(strategy)(**given)


def title(strategy: Strategy) -> str:
    """How a report names a strategy: ``vision=tome``, with the fields that were given."""
    name = vars(type(strategy)).get("name") or type(strategy).__qualname__.rsplit(".", 1)[-1]
    given = {
        field: getattr(strategy, field)
        for field, info in type(strategy).model_fields.items()
        if getattr(strategy, field) != info.get_default(call_default_factory=True)
    }
    fields = ", ".join(f"{field}={_short(value)}" for field, value in given.items())
    return f"{strategy.stage}={name}" + (f"({fields})" if fields else "")


def _short(value: Any) -> str:
    text = value.name if isinstance(value, Strategy) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
