"""A table of many runs for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from tokcomp.report.rows import Row, told_apart

__all__ = ["runs_table"]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def runs_table(rows: Sequence[Row]) -> Table:
    """One line per run: accuracy with its interval, and what it costs as shares of the dense model."""
    table = Table(
        caption="shares of the dense model; interval: 95 % (Wilson)", caption_justify="left", title_justify="left"
    )
    table.add_column("run", overflow="fold")
    for name in ("accuracy", "same answer", "tokens", "FLOPs", "KV cache", "prefill", "decoding"):
        table.add_column(name, justify="right")
    for row, name in zip(rows, told_apart(rows), strict=True):
        low, high = row.interval
        table.add_row(
            name,
            f"{row.accuracy:.1%} [{low:.0%}, {high:.0%}]",
            f"{row.agreement:.0%}",
            f"{row.equivalent_tokens:.4g}",
            _share(row.flops),
            _share(row.kv_bytes),
            _share(row.prefill_time),
            _share(row.decode_time),
        )
    return table
