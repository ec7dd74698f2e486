"""Parts of tables that are made from the benchmarks' records."""

from __future__ import annotations

from typing import Any

Rows = list[dict[str, Any]]


def of_kind(record: dict[str, Any], kind: str) -> Rows:
    return [row for row in record["rows"] if row["kind"] == kind]


def by_cell(rows: Rows) -> list[tuple[str, Rows]]:
    """Rows by cell (model, batch, tokens) in the order in which they were measured, with a title."""
    cells: dict[str, Rows] = {}
    for row in rows:
        title = (
            f"{row['shape']}, batch {row['batch']}, {row['image_tokens']} image and {row['text_tokens']} text tokens"
        )
        cells.setdefault(title, []).append(row)
    return list(cells.items())


def table_of(head: list[str], lines: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1),
            *("| " + " | ".join(line) + " |" for line in lines)]  # fmt: skip


def cell_key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["shape"], row["batch"], row["image_tokens"], row["side"]


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def interval(row: dict[str, Any]) -> str:
    return f"{row['ms']:.1f} [{row['ms_low']:.1f}, {row['ms_high']:.1f}]"


def gigabytes(number: float | None) -> str:
    return "" if number is None else f"{number / 1e9:.2f} GB"
