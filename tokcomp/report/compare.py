"""What changed between two stores: runs of one configuration, made by different code or on different machines."""

from __future__ import annotations

from collections.abc import Iterable
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


def _names(rows: Iterable[Row]) -> dict[str, Row]:
    return {repr(sorted(row.config.items())): row for row in rows}


def compare(before: Study, after: Study) -> Comparison:
    """Match the runs of two studies by their configuration."""
    a, b = _names(before.rows), _names(after.rows)
    shared = [name for name in a if name in b]
    found = []
    for name in shared:
        same = a[name].ids == b[name].ids
        found.append((a[name], b[name], _difference(a[name], b[name]) if same else None))
    return Comparison(
        tuple(found), tuple(a[name] for name in a if name not in b), tuple(b[name] for name in b if name not in a)
    )


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
