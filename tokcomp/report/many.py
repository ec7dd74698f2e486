"""A table of many runs for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from tokcomp.report.rows import STAGES, Row, axes_of

__all__ = ["runs_table"]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def runs_table(rows: Sequence[Row]) -> Table:
    """One line per run: what tells it apart, its accuracy with its interval, its costs as shares of the dense model's."""
    caption = (
        "same: answers equal to the dense ones; FLOPs to decode: shares of the dense model; interval: 95 % (Wilson)"
    )
    table = Table(caption=caption, caption_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    axes = axes_of(rows) or {stage: [row.stages[place] for row in rows] for place, stage in enumerate(STAGES)}
    for key in axes:
        table.add_column(key, overflow="fold", min_width=min(8, max(map(len, axes[key]))))
    for name in ("accuracy %", "same", "tokens", "FLOPs", "KV", "prefill", "decode"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, row in enumerate(rows):
        low, high = row.interval
        table.add_row(
            *(values[number] for values in axes.values()),
            f"{100 * row.accuracy:.1f} [{100 * low:.0f},{100 * high:.0f}]",
            f"{row.agreement:.0%}",
            f"{row.equivalent_tokens:.4g}",
            _share(row.flops),
            _share(row.kv_bytes),
            _share(row.prefill_time),
            _share(row.decode_time),
        )
    return table
