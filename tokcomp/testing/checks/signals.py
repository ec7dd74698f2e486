"""Rules about what a strategy looks at: what it declares, and nothing behind the query."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokcomp.stages import CachePolicy
from tokcomp.testing.benches import Bench, Crash
from tokcomp.testing.checks.decisions import needs_no_cls, sound, undeclared
from tokcomp.testing.report import Breach, Unchecked
from tokcomp.testing.search import Search
from tokcomp.testing.situations import Situation, Space
from tokcomp.types import Selection, Signal, UndeclaredSignalError

__all__ = ["future", "needs"]


def needs(strategy: Any, bench: Bench, search: Search) -> None:
    """Signals that are read, and what else a class says about itself."""
    _says_what_it_defines(strategy)

    def test(case: Situation) -> None:
        try:
            decisions = bench.run(strategy, case)
        except Crash as crash:
            if not undeclared(crash):
                raise Unchecked(f"{crash}: see the rules that say so") from crash
            raise Breach(_peeked(strategy, crash), do=_declare(strategy, crash)) from crash
        for decided in decisions:
            found = decided.selection
            if isinstance(found, Selection) and found.protect is not None and not getattr(strategy, "protects", True):
                raise Breach(f"{decided.called} marks key tokens (protect), but the class does not say that it protects",
                             do="set protects = True on the class: later stages ask for marks only then")  # fmt: skip
        if bench.stage == "cache" and strategy.layers_alike:
            _reads_no_layer(strategy, bench, case)

    search(Space(bench.stage, tokens=(2, 40), protected=(0.0, 0.3), without_cls=needs_no_cls(strategy)), test)


def _peeked(strategy: Any, crash: Crash) -> str:
    if isinstance(crash.error, UndeclaredSignalError):
        name = str(crash.error).split("'")[1]
        return f"{crash.called} reads the signal '{name}', which it does not declare"
    return f"{crash.called} reads a block that it does not look at: {crash.error}"


def _declare(strategy: Any, crash: Crash) -> str:
    if not isinstance(crash.error, UndeclaredSignalError):
        return "name the block in looks_at(depth)"
    signal = Signal(str(crash.error).split("'")[1])
    if signal in strategy.signals():
        if signal is Signal.QUERY_ATTENTION:
            return 'it is in needs, but queries is None: set queries = "last" or "text" on the class'
        if signal is Signal.TEXT_RELEVANCE:
            return "it is there at the site projected only: return (Site.projected(),) from sites()"
        return "it is in needs, but not shown at this place: see the docstring of the view"
    declared = ", ".join(f"Signal.{each.name}" for each in sorted({*strategy.signals(), signal}))
    return f"set needs = frozenset({{{declared}}}) on the class"


def _says_what_it_defines(strategy: Any) -> None:
    if strategy.stage != "cache":
        return
    if (
        type(strategy).after_step is not CachePolicy.after_step
        and not strategy.decodes()
        and not hasattr(strategy, "base")
    ):
        if type(strategy).of_layer is not CachePolicy.of_layer:
            return  # it holds policies that say so themselves
        raise Breach("it defines after_step(), but does not act in decoding: the method is never called",
                     do="set acts_in_decoding = True on the class, or leave after_step() out")  # fmt: skip
    surveys = type(strategy).survey is not CachePolicy.survey
    if surveys and Signal.SURVEY not in strategy.signals() and not hasattr(strategy, "base"):
        raise Breach("it defines survey(), but does not declare Signal.SURVEY: the method is never called",
                     do="add Signal.SURVEY to needs, or leave survey() out")  # fmt: skip


def _reads_no_layer(strategy: Any, bench: Bench, case: Situation) -> None:
    """A policy that says it looks at no layer in particular must do without its number, keys and values."""
    for view in bench.views(strategy, case):
        usual = sound(strategy, bench, view)
        empty = view.keys.new_empty(*view.valid.shape, 0)
        blind = replace(view, layer=strategy.acts_on(view.depth)[0], keys=empty, values=empty, memory={})
        try:
            other = bench.decide(strategy, blind)
        except Crash as crash:
            raise Breach(f"it says layers_alike, but without keys and values {crash}", do=_ALIKE) from crash
        for one, two in zip(usual, other, strict=True):
            for row in range(view.batch_size):
                if bench.outcome(one.selection, view, row) != bench.outcome(two.selection, blind, row):
                    raise Breach("it says layers_alike, but its choice depends on the layer, its keys or its values",
                                 do=_ALIKE)  # fmt: skip


_ALIKE = "leave layers_alike at False: True is for policies that read neither view.layer nor keys and values"


def future(strategy: Any, bench: Bench, search: Search) -> None:
    """Other contents behind the query, the same choice."""

    def test(case: Situation) -> None:
        for view in bench.views(strategy, case):
            changed = [bench.later(strategy, view, seed) for seed in (1, 2)]
            if changed[0] is None:
                continue  # the view shows nothing but what the query sees
            asked = [sound(strategy, bench, each) for each in changed]
            for one, two in zip(*asked, strict=True):
                for row in range(view.batch_size):
                    if bench.outcome(one.selection, one.view, row) != bench.outcome(two.selection, two.view, row):
                        raise Breach(f"{one.called} decides by what comes after the query: rows that are not real",
                                     do=_REAL[bench.stage])  # fmt: skip

    search(Space(bench.stage, tokens=(2, 40)), test)


_REAL = {
    "prefill": "leave out the rows of view.text, text_keys and attention for which view.text_valid or view.rows is False",
    "cache": "leave out the rows of view.attention_rows whose second tensor (which rows are real) is False",
}
