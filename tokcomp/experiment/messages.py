"""What is said about a wrong setting: one line that names it, where it stands and what would be right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from tokcomp.errors import suggest

__all__ = ["explain_settings", "unknown_setting"]


def unknown_setting(name: str, section: str, known: Sequence[str]) -> str:
    """``'rr' is not a setting of vision 'tome'; did you mean 'r'? it takes: ...``"""
    known = tuple(sorted({field for field in known if field not in ("name", "_target_")}))
    stage, _, strategy = section.partition(" ")
    if not known and strategy == "'none'":
        return f"'{name}' is not a setting of {section}, which has none: choose a strategy with {stage}=NAME first"
    return f"'{name}' is not a setting of {section}{suggest(name, known)} it takes: {', '.join(known) or 'nothing'}"


def explain_settings(error: ValidationError, what: str, fields: Mapping[str, Sequence[str]], prefix: str = "") -> str:
    """One line for all problems that pydantic found.

    Args:
        error: what pydantic raised.
        what: name of the whole, such as "a run".
        fields: the settings of each section, by dotted name; ``""`` for those of the whole.
        prefix: stands before the names of settings.
    """
    lines: dict[str, str] = {}  # by setting: where several types are allowed, pydantic tells of each
    for problem in error.errors():
        lines.setdefault(".".join(map(str, problem["loc"][:2])), _explain(problem, what, fields, prefix))
    return "; ".join(lines.values())


def _explain(problem: Any, what: str, fields: Mapping[str, Sequence[str]], prefix: str) -> str:
    path = [str(part) for part in problem["loc"]]
    name = prefix + ".".join(path)
    message = problem["msg"]
    if problem["type"] == "extra_forbidden":
        section = ".".join(path[:-1])
        return unknown_setting(path[-1], section or what, fields.get(section, ()))
    if problem["type"] == "value_error":
        # Raised by our own checks, which name the setting themselves.
        return str(problem["ctx"]["error"])
    if problem["type"] == "missing":
        return f"{name} is missing"
    return f"{name}={problem['input']!r}: {message[:1].lower()}{message[1:]}"
