"""Old names that go on working for a while: each warns, and says in which version it will be gone.

Every rename is declared once; a test fails as soon as the version that was promised for its removal has come. See
docs/stability.md.
"""

from __future__ import annotations

import functools
import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from tokcomp.errors import ConfigurationError

__all__ = ["DECLARED", "Renamed", "TokcompDeprecationWarning", "overdue", "renamed_fields", "renamed_option",
           "renamed_parameter", "renamed_strategy"]  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R")


class TokcompDeprecationWarning(DeprecationWarning, FutureWarning):
    """An old name was used. It is a FutureWarning as well, so that users see it and not only test runners."""


@dataclass(frozen=True)
class Renamed:
    """One rename.

    Attributes:
        what: what was renamed, for messages: ``the field 'ratio' of vision 'my_idea'``.
        new: its new name.
        since: the version that renamed it. ``removed_in``: the version in which the old name is gone.
    """

    what: str
    new: str
    since: str
    removed_in: str

    def __post_init__(self) -> None:
        for version in (self.since, self.removed_in):
            if not re.fullmatch(r"\d+\.\d+(\.\d+)?", version):
                raise ValueError(f"'{version}' is no version of a release: give numbers, such as 0.3")
        if _numbers(self.removed_in) <= _numbers(self.since):
            raise ValueError(f"{self.what}: it cannot be removed in {self.removed_in} when {self.since} renamed it")

    def warn(self, stacklevel: int = 3) -> None:
        """Tell whoever used the old name."""
        warnings.warn(
            f"{self.what} is called '{self.new}' since {self.since}; the old name will be removed in {self.removed_in}",
            TokcompDeprecationWarning,
            stacklevel=stacklevel,
        )


DECLARED: list[Renamed] = []
"""Every rename of this process: tokcomp's own as its modules are imported, and those of plug-ins."""

_FIELDS: dict[tuple[str, str], dict[str, Renamed]] = {}
_OPTIONS: dict[tuple[str, str], Renamed] = {}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def overdue(version: str) -> list[Renamed]:
    """The renames whose old names should be gone in ``version``."""
    return [one for one in DECLARED if _numbers(one.removed_in) <= _numbers(version)]


def _declare(one: Renamed) -> Renamed:
    if one not in DECLARED:
        DECLARED.append(one)
    return one


def renamed_parameter(old: str, new: str, *, since: str, removed_in: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator of a function whose parameter ``old`` is called ``new`` now: the old keyword goes on working.

    Raises (when it is called):
        TypeError: both are given.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if new not in inspect.signature(function).parameters:
            raise ValueError(f"{function.__qualname__} has no parameter '{new}'")
        one = _declare(Renamed(f"the parameter '{old}' of {function.__qualname__}", new, since, removed_in))

        @functools.wraps(function)
        def with_old(*args: P.args, **kwargs: P.kwargs) -> R:
            if old in kwargs:
                if new in kwargs:
                    raise TypeError(f"{function.__qualname__}: give '{new}' alone, '{old}' is its old name")
                one.warn()
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return with_old

    return decorate


def renamed_fields(stage: str, strategy: str, old_to_new: Mapping[str, str], *, since: str, removed_in: str) -> None:
    """Fields of a registered strategy that have new names: old ones go on working in Python, on the command line and in
    option files."""
    for old, new in old_to_new.items():
        what = f"the field '{old}' of {stage} '{strategy}'"
        _FIELDS.setdefault((stage, strategy), {})[old] = _declare(Renamed(what, new, since, removed_in))


def renamed_strategy(stage: str, old: str, new: str, *, since: str, removed_in: str) -> None:
    """A strategy of ``stage`` that has a new name."""
    renamed_option(stage, old, new, since=since, removed_in=removed_in)


def renamed_option(group: str, old: str, new: str, *, since: str, removed_in: str) -> None:
    """An option of a config group (``model``, ``preset``...; strategies of a stage) that has a new name."""
    _OPTIONS[group, old] = _declare(Renamed(f"{group}={old}", new, since, removed_in))


def current_option(group: str, name: str) -> str:
    """The name that an option has now; warns where ``name`` is an old one."""
    one = _OPTIONS.get((group, name))
    if one is None:
        return name
    one.warn(stacklevel=4)
    return one.new


def current_fields(stage: str, strategy: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields under the names that they have now.

    Raises:
        ConfigurationError: an old name and its new one are both given.
    """
    renamed = _FIELDS.get((stage, strategy))
    if not renamed:
        return dict(fields)
    current: dict[str, Any] = {name: value for name, value in fields.items() if name not in renamed}
    for old in renamed.keys() & fields.keys():
        one = renamed[old]
        if one.new in fields:
            raise ConfigurationError(f"{stage} '{strategy}': give {one.new} alone, {old} is its old name")
        one.warn(stacklevel=4)
        current[one.new] = fields[old]
    return current


def current_overrides(overrides: list[str]) -> list[str]:
    """A command line under the names that options and fields have now."""
    chosen: dict[str, str] = {}
    lines = []
    for text in overrides:
        key, equals, value = text.partition("=")
        group, dot, field = key.partition(".")
        if equals and not dot:
            value = ",".join(current_option(group, one) for one in value.split(",")) if _OPTIONS else value
            chosen[group] = value
            text = f"{key}={value}"
        lines.append((text, group, field, value))
    return [_with_field(*line, chosen) for line in lines]


def _with_field(text: str, group: str, field: str, value: str, chosen: Mapping[str, str]) -> str:
    for strategy in chosen.get(group, "").split(","):
        one = _FIELDS.get((group, strategy), {}).get(field)
        if one is not None:
            one.warn(stacklevel=5)
            return f"{group}.{one.new}={value}"
    return text
