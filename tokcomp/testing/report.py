"""What the checks find: a breach of a rule, with the smallest input that shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tokcomp.testing.rules import Rule

__all__ = ["Breach", "ContractError", "Finding", "Holding", "Report", "Unchecked"]


class Breach(Exception):
    """A strategy broke a rule: what it did, and what to do about it."""

    def __init__(self, what: str, *, do: str) -> None:
        super().__init__(what)
        self.what, self.do = what, do


class Unchecked(Exception):
    """A rule could not be checked, and why: another rule fails first, or the strategy refuses such input."""


class Holding(Unchecked):
    """A strategy tried to keep something on itself, which the rule ``state`` tells of."""

    def __init__(self) -> None:
        super().__init__("it sets attributes of its own: see the rule 'state'")


@dataclass(frozen=True)
class Finding:
    """One broken rule.

    Attributes:
        strategy: which strategy, as it is written in a configuration.
        rule: the rule.
        what: what the strategy did.
        do: what to do about it.
        example: the smallest input that shows it; empty where the input does not matter.
    """

    strategy: str
    rule: Rule
    what: str
    do: str
    example: str = ""

    def __str__(self) -> str:
        lines = [f"{self.strategy} breaks the rule '{self.rule.name}': {self.what}"]
        if self.example:
            lines.append(f"  smallest failing input: {self.example}")
        return "\n".join([*lines, f"  to do: {self.do}", f"  the rule: {self.rule.text}; see {self.rule.link}"])


class ContractError(AssertionError):
    """A strategy broke a rule of the contract."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


@dataclass
class Report:
    """What was found about one strategy.

    Attributes:
        strategy: which one.
        kept: rules that it keeps.
        findings: rules that it breaks.
        departures: rules that it departs from on purpose, with its reason.
        unchecked: rules that could not be checked, with the cause.
        figures: what was measured, such as operations and bytes by number of tokens.
    """

    strategy: str
    kept: list[Rule] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    departures: dict[str, str] = field(default_factory=dict)
    unchecked: dict[str, str] = field(default_factory=dict)
    figures: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether no rule is broken."""
        return not self.findings

    def broken(self) -> tuple[str, ...]:
        """Names of the broken rules."""
        return tuple(finding.rule.name for finding in self.findings)

    def text(self, *, verbose: bool = True) -> str:
        """The report in words; ``verbose``: with what was measured, not checked and departed from."""
        parts = [f"{len(self.kept)} rule{'' if len(self.kept) == 1 else 's'} kept"]
        parts += [f"{len(self.unchecked)} not checked"] if self.unchecked else []
        parts += [f"{len(self.findings)} broken" if self.findings else "none broken"]
        nothing = not (self.kept or self.findings or self.unchecked)
        head = f"{self.strategy}: {'no such rule applies to it' if nothing else ', '.join(parts)}"
        notes = [] if not verbose else [*_notes("departs on purpose from", self.departures),
                                        *_notes("not checked", self.unchecked), *_notes("measured", self.figures)]  # fmt: skip
        return "\n".join([head, *map(str, self.findings), *notes])

    def __str__(self) -> str:
        return self.text()


def _notes(title: str, notes: Mapping[str, str]) -> list[str]:
    """One line for all rules of which the same is to be said."""
    names: dict[str, list[str]] = {}
    for name, text in notes.items():
        names.setdefault(text, []).append(name)
    return [f"  {title}: {', '.join(rules)}: {text}" for text, rules in names.items()]
