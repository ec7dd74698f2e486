"""The rules of the contract, in plain words. Their names are the anchors of docs/contract.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokcomp.errors import ConfigurationError, suggest

__all__ = ["PAGE", "RULES", "Rule", "find_rules"]

PAGE = "docs/contract.md"
STAGES = ("vision", "prefill", "cache")


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: its name, and its anchor on the page.
        text: what a strategy does that keeps to it.
        stages: where it applies.
        negotiable: whether a strategy may depart from it on purpose, with a reason (``departures``).
    """

    name: str
    text: str
    stages: tuple[str, ...] = STAGES
    negotiable: bool = False

    @property
    def link(self) -> str:
        """Where the docs explain it."""
        return f"{PAGE}#{self.name}"


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("selection", "returns a Selection whose tensors have the right shapes and dtypes"),
        Rule("indices", "keeps tokens that exist, each once, at least one per sample, and keeps its promises"),
        Rule("places", "acts at places that exist, whatever the depth of the model"),
        Rule("budget", "keeps as many tokens as keep_ratio or keep_tokens says", negotiable=True),
        Rule("protected", "never drops what must stay: key tokens, and text where keep_text says so",
             ("prefill", "cache")),
        Rule("needs", "reads only what it declares, and declares what it does"),
        Rule("state", "keeps nothing on itself between calls"),
        Rule("inputs", "leaves the tensors of its view as they are"),
        Rule("batch", "gives a batch what its samples give one by one"),
        Rule("device", "works on whatever device the view is on"),
        Rule("determinism", "gives the same view the same selection, without the global random generators"),
        Rule("future", "ignores what comes after the query", ("prefill", "cache")),
        Rule("one-token", "works where a sample has a single token"),
        Rule("odd-grid", "works on grids that are not square, and on odd ones", ("vision",)),
        Rule("ragged-batch", "works on three samples of different lengths"),
        Rule("bfloat16", "works in half precision"),
        Rule("pickle", "can be pickled and copied"),
        Rule("config", "survives the way through a configuration file, and refuses wrong fields"),
        Rule("description", "says what it is: a docstring, and a description for every field"),
        Rule("cost", "takes time and memory in proportion to the tokens", negotiable=True),
        Rule("model", "works in a model: a batch as its samples, again as before, the model left as it was"),
    )
}  # fmt: skip


def find_rules(names: Sequence[str] | None) -> tuple[Rule, ...]:
    """Rules by name; None: all of them.

    Raises:
        ConfigurationError: there is no such rule.
    """
    for name in names or ():
        if name not in RULES:
            raise ConfigurationError(f"unknown rule '{name}'{suggest(name, tuple(RULES))} known: {', '.join(RULES)}")
    return tuple(rule for rule in RULES.values() if names is None or rule.name in names)
