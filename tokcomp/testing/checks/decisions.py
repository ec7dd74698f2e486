"""What the checks share: decisions in which nothing else is wrong, and comparisons."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokcomp.testing.benches import Bench, Crash, Decided
from tokcomp.testing.faults import wrong_indices, wrong_shape
from tokcomp.testing.report import Breach, Unchecked
from tokcomp.testing.situations import Situation
from tokcomp.types import UndeclaredSignalError

__all__ = ["breach_of", "crashed", "fault", "needs_no_cls", "sound", "undeclared"]


def needs_no_cls(strategy: Any) -> bool:
    """Whether a strategy may be shown a tower without CLS token."""
    return strategy.stage == "vision" and not strategy.refuses_without_cls()


def undeclared(crash: Crash) -> bool:
    """Whether a strategy read what its view does not hold, which the rule ``needs`` tells of."""
    return isinstance(crash.error, UndeclaredSignalError) or (
        isinstance(crash.error, LookupError) and "looks_at" in str(crash.error)
    )


def fault(strategy: Any, bench: Bench, situation: Situation) -> str | None:
    """What goes wrong in one situation: an exception, or a selection that is none.

    Raises:
        Unchecked: what goes wrong is the business of the rule ``needs``.
    """
    try:
        decisions = bench.run(strategy, situation)
    except Crash as crash:
        if undeclared(crash):
            raise Unchecked("it reads a signal that it does not declare: see the rule 'needs'") from crash
        return str(crash)
    for decided in decisions:
        wrong = wrong_shape(decided, bench.stage) or wrong_indices(decided, bench.stage)
        if wrong is not None:
            return wrong
    return None


def crashed(strategy: Any, bench: Bench, view: Any, *, copy: bool = True) -> list[Decided]:
    """The decisions about one view, or about a copy of it, which nobody has changed before; an exception is another rule's
    business."""
    try:
        return bench.decide(strategy, bench.moved(view, Tensor.clone) if copy else view)
    except Crash as crash:
        raise Unchecked(f"{crash}: see the rules that say so") from crash


def sound(strategy: Any, bench: Bench, view: Any) -> list[Decided]:
    """The decisions about one view, whose shapes and indices are right; what is not is another rule's business."""
    decisions = crashed(strategy, bench, view)
    for decided in decisions:
        wrong = wrong_shape(decided, bench.stage) or wrong_indices(decided, bench.stage)
        if wrong is not None:
            raise Unchecked(f"{wrong}: see the rules 'selection' and 'indices'")
    return decisions


def breach_of(what: str | None, *, do: str) -> None:
    """Raise a breach where there is one."""
    if what is not None:
        raise Breach(what, do=do)
