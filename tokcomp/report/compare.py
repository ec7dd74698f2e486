"""What changed between two stores: runs of one configuration, made by different code or on different machines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from tokcomp.report.rows import Row
from tokcomp.report.statistics import Difference, paired_differences
from tokcomp.report.study import Study

__all__ = ["Comparison", "compare", "comparison_table"]


@dataclass(frozen=True)
class Comparison:
    """Two studies side by side.

    Attributes:
        pairs: runs of one configuration: before, after, and how the accuracy differs (None: other questions).
        gone, new: runs that only the first, and only the second study has.
    """

    pairs: tuple[tuple[Row, Row, Difference | None], ...]
    gone: tuple[Row, ...]
    new: tuple[Row, ...]


def _configuration(row: Row) -> str:
    return row.settings


def _elsewhere(row: Row) -> str:
    """The configuration without the device, which another machine may not have."""
    config = {name: section for name, section in row.config.items() if name not in ("callbacks", "device")}
    return repr(sorted(config.items()))


def _command(row: Row) -> str:
    """The command line, which stays what it is where code has other defaults."""
    return " ".join(sorted(row.overrides)) or row.settings


def compare(before: Study, after: Study) -> Comparison:
    """Match the runs of two studies: by their configuration, else by it without the device, else by their command line."""
    gone, new = list(before.rows), list(after.rows)
    found: list[tuple[Row, Row, Difference | None]] = []
    for name in (_configuration, _elsewhere, _command):
        pairs = _pairs(gone, new, name)
        found += [(a, b, _difference(a, b) if a.questions == b.questions else None) for a, b in pairs]
        matched = {id(row) for pair in pairs for row in pair}
        gone, new = ([row for row in rows if id(row) not in matched] for rows in (gone, new))
    return Comparison(tuple(found), tuple(gone), tuple(new))


def _pairs(before: Sequence[Row], after: Sequence[Row], name: Callable[[Row], str]) -> list[tuple[Row, Row]]:
    """Runs of one name, where each side has one of it."""
    a, b = _by_name(before, name), _by_name(after, name)
    return [(a[key][0], b[key][0]) for key in a if key in b and len(a[key]) == len(b[key]) == 1]


def _by_name(rows: Sequence[Row], name: Callable[[Row], str]) -> dict[str, list[Row]]:
    named: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        named[name(row)].append(row)
    return named


def _difference(before: Row, after: Row) -> Difference:
    counted = np.array(before.headline)
    return paired_differences(after.scores[counted], before.scores[counted])[0]


def comparison_table(found: Comparison) -> Table:
    """Runs whose accuracy or costs changed, one line each."""
    table = Table(title="what changed", title_justify="left", caption_justify="left")
    same = 0
    table.add_column("run", overflow="fold")
    for name in ("accuracy", "difference", "p", "tokens", "FLOPs", "KV"):
        table.add_column(name, justify="right")
    for a, b, difference in found.pairs:
        costs = [(x, y) for x, y in zip(_costs(a), _costs(b), strict=True)]
        if a.accuracy == b.accuracy and np.array_equal(a.scores, b.scores) and all(x == y for x, y in costs):
            same += 1
            continue
        told = "-" if difference is None else f"{100 * difference.mean:+.1f}"
        table.add_row(
            " ".join(b.overrides),
            f"{a.accuracy:.1%} → {b.accuracy:.1%}",
            told,
            "-" if difference is None else f"{difference.p:.3f}",
            *(x if x == y else f"{x} → {y}" for x, y in costs),
        )
    table.caption = (
        f"{same} runs are the same; {len(found.gone)} only in the first store, {len(found.new)} only in the second"
    )
    return table


def _costs(row: Row) -> tuple[str, str, str]:
    return f"{row.equivalent_tokens:.4g}", f"{row.flops:.1%}", f"{row.kv_bytes:.1%}"
