"""The contract as tests of a plug-in: one case per rule and strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokcomp.errors import ConfigurationError
from tokcomp.stages import Strategy
from tokcomp.testing.instances import instance, title
from tokcomp.testing.kit import EXAMPLES, Check, checks_of
from tokcomp.testing.report import Unchecked

__all__ = ["contract", "parametrize_with_checks"]


def parametrize_with_checks(strategies: Sequence[Strategy | type[Strategy]], *, rules: Sequence[str] | None = None,
                            skip: Mapping[str, str] | None = None, examples: int = EXAMPLES) -> Any:  # fmt: skip
    """Decorator that gives a test one case per rule and strategy::

        @parametrize_with_checks([MyIdea(), MyIdea(keep_ratio=0.1)])
        def test_contract(strategy, check):
            check(strategy)

    Args:
        strategies: objects, or classes that are taken with their defaults.
        rules: names of the rules to check; None: all of them.
        skip: rules that are left out, by name, with the reason.
        examples: inputs that are drawn for each rule, beside those that are always tried.
    """
    pytest = _pytest()
    cases = []
    for strategy in map(instance, strategies):
        for check in checks_of(strategy, rules, examples=examples):
            reason = (skip or {}).get(check.rule.name)
            marks = [] if reason is None else [pytest.mark.skip(reason=reason)]
            case = pytest.param(
                strategy, _Case(check.rule, check.examples), marks=marks, id=f"{title(strategy)}-{check.rule.name}"
            )
            cases.append(case)
    return pytest.mark.parametrize(("strategy", "check"), cases)


def contract(*strategies: Strategy | type[Strategy], rules: Sequence[str] | None = None,
             skip: Mapping[str, str] | None = None, examples: int = EXAMPLES) -> Callable[..., None]:  # fmt: skip
    """A test of the whole contract in one line: ``test_contract = contract(MyIdea)``."""

    @parametrize_with_checks(strategies, rules=rules, skip=skip, examples=examples)
    def test_contract(strategy: Strategy, check: Check) -> None:
        check(strategy)

    return test_contract


class _Case(Check):
    """A check that pytest counts as skipped where it cannot be made."""

    def __call__(self, strategy: Strategy | type[Strategy]) -> dict[str, str]:
        __tracebackhide__ = True
        try:
            return super().__call__(strategy)
        except Unchecked as cause:
            _pytest().skip(str(cause))
            raise


def _pytest() -> Any:
    try:
        import pytest
    except ImportError as error:
        raise ConfigurationError(
            "the contract as tests needs pytest, which is not installed: pip install 'tokcomp[testing]'"
        ) from error
    return pytest
