"""Runs the rules on a strategy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokcomp.errors import CompatibilityError
from tokcomp.stages import Strategy
from tokcomp.testing.benches import BENCHES
from tokcomp.testing.checks import CHECKS
from tokcomp.testing.checks.cost import cost_figures
from tokcomp.testing.extra import hypothesis
from tokcomp.testing.instances import fresh, instance, title
from tokcomp.testing.report import Breach, ContractError, Finding, Report, Unchecked
from tokcomp.testing.rules import RULES, Rule, find_rules
from tokcomp.testing.search import Found, Search

__all__ = ["EXAMPLES", "Check", "check_strategy", "checks_of"]

EXAMPLES = 25
"""Situations that hypothesis draws for a rule, beside those that are always tried."""


@dataclass(frozen=True)
class Check:
    """One rule, ready to be held against a strategy."""

    rule: Rule
    examples: int = EXAMPLES

    def __call__(self, strategy: Strategy | type[Strategy]) -> dict[str, str]:
        """What was measured.

        Raises:
            ContractError: the rule is broken.
            Unchecked: it could not be checked.
        """
        __tracebackhide__ = True  # pytest then ends the traceback at the test
        subject = instance(strategy)
        try:
            return CHECKS[self.rule.name](fresh(subject), BENCHES[subject.stage], Search(self.examples)) or {}
        except Unchecked:
            raise
        except CompatibilityError as refusal:
            raise Unchecked(f"these fields do not fit a model of this size: {refusal}") from None
        except Exception as error:
            finding, cause = self._finding(title(subject), error)
            raise ContractError(finding) from cause

    def _finding(self, name: str, error: Exception) -> tuple[Finding, BaseException | None]:
        """What an exception tells, and the strategy's own exception behind it."""
        example = str(error.situation) if isinstance(error, Found) else ""
        breach = error.breach if isinstance(error, Found) else error
        if isinstance(breach, Breach):
            crash = breach.__cause__
            return Finding(name, self.rule, breach.what, breach.do, example), getattr(crash, "error", crash)
        what = f"while the rule was checked, {type(error).__name__} was raised: {' '.join(str(error).split())}"
        return Finding(
            name, self.rule, what, "run the check as a test (tokcomp.testing.contract) to see the traceback"
        ), error

    def __repr__(self) -> str:
        return self.rule.name


def checks_of(strategy: Strategy | type[Strategy], rules: Sequence[str] | None = None, *,
              examples: int = EXAMPLES) -> Iterator[Check]:  # fmt: skip
    """The checks that apply to a strategy: those of its stage, without what it departs from on purpose.

    Raises:
        ConfigurationError: no such rule, no strategy, or hypothesis is not installed.
    """
    hypothesis()
    subject = instance(strategy)
    departures = _departures(subject)
    for rule in find_rules(rules):
        if subject.stage in rule.stages and rule.name not in departures:
            yield Check(rule, examples)


def check_strategy(strategy: Strategy | type[Strategy], rules: Sequence[str] | None = None, *,
                   examples: int = EXAMPLES) -> Report:  # fmt: skip
    """Hold a strategy against the contract.

    Args:
        strategy: a class, which is taken with its defaults, or an object.
        rules: names of the rules to check; None: all of them.
        examples: inputs that are drawn for each rule, beside those that are always tried.

    Returns:
        A report; ``report.ok`` tells whether no rule is broken, ``print(report)`` tells all.

    Raises:
        ConfigurationError: no such rule, no strategy, or hypothesis is not installed.
    """
    subject: Any = instance(strategy)
    report = Report(title(subject), departures=_departures(subject))
    for check in checks_of(subject, rules, examples=examples):
        try:
            report.figures.update(check(subject))
            report.kept.append(check.rule)
        except ContractError as error:
            report.findings.append(error.finding)
        except Unchecked as cause:
            report.unchecked[check.rule.name] = str(cause)
    if "cost" in report.departures and (rules is None or "cost" in rules):
        report.figures.update(cost_figures(subject, BENCHES[subject.stage]))
    return report


def _departures(strategy: Strategy) -> dict[str, str]:
    return {name: reason for name, reason in strategy.departures().items() if name in RULES and RULES[name].negotiable}
