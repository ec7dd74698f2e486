"""Rules about inputs at the edge: a strategy that works on plain ones must work there, too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokcomp.testing.benches import Bench
from tokcomp.testing.checks.decisions import breach_of, fault, needs_no_cls
from tokcomp.testing.report import Unchecked
from tokcomp.testing.search import Search
from tokcomp.testing.situations import PLAIN, Situation, Space

__all__ = ["bfloat16", "odd_grid", "one_token", "ragged_batch"]


def _works_on_plain_input(strategy: Any, bench: Bench) -> None:
    wrong = fault(strategy, bench, PLAIN[bench.stage])
    if wrong is not None:
        raise Unchecked(f"already on plain input {wrong}")


def one_token(strategy: Any, bench: Bench, search: Search) -> None:
    """Samples of one token."""
    _works_on_plain_input(strategy, bench)

    def test(case: Situation) -> None:
        wrong = fault(strategy, bench, case)
        if wrong is not None and case.stage == "vision" and fault(strategy, bench, replace(case, grid=(2, 2))) is None:
            raise Unchecked(f"on an odd grid {wrong}")
        breach_of(
            wrong, do="an earlier stage may leave a single token: bound every count by view.counts, and keep that token"
        )

    search(Space(bench.stage, tokens=(1, 1), ragged=False, without_cls=needs_no_cls(strategy)), test)


def odd_grid(strategy: Any, bench: Bench, search: Search) -> None:
    """Grids that are not square or of an odd side."""
    _works_on_plain_input(strategy, bench)
    search(Space(bench.stage, tokens=(2, 200), square=False, ragged=False),
           lambda case: breach_of(
               fault(strategy, bench, case),
               do="take rows and columns from view.grid and places from view.origin; tokens need not fill the grid",
           ))  # fmt: skip


def ragged_batch(strategy: Any, bench: Bench, search: Search) -> None:
    """Three samples of different lengths."""
    _works_on_plain_input(strategy, bench)

    def test(case: Situation) -> None:
        wrong = fault(strategy, bench, case)
        for count in set(case.counts) if wrong is not None else ():
            single = replace(case, counts=(count,), text=case.text[:1])
            if fault(strategy, bench, single) is not None:
                raise Unchecked(f"already alone {wrong}")
        breach_of(
            wrong,
            do="samples differ in length: use view.valid and view.counts, and pad keep with -1 at the end of a row",
        )

    search(Space(bench.stage, batch=(3, 3), ragged=True, without_cls=needs_no_cls(strategy)), test)


def bfloat16(strategy: Any, bench: Bench, search: Search) -> None:
    """What works in float32 works in bfloat16."""
    _works_on_plain_input(strategy, bench)

    def test(case: Situation) -> None:
        wrong = fault(strategy, bench, case)
        if wrong is not None and fault(strategy, bench, replace(case, half=False)) is not None:
            raise Unchecked("already in float32")
        breach_of(wrong, do="compute scores in float32 (.float()) and return weights as floats; never assume a dtype")

    search(Space(bench.stage, half=True), test)
