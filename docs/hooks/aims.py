"""What the speed benchmarks were to reach beside what they reached: published code paths, and the share of selecting."""

from __future__ import annotations

from typing import Any

from cells import by_cell, cell_key, gigabytes, interval, of_kind, percent, table_of

GAINS = {"fastv": 1.3, "mustdrop": 1.5, "h2o": 2.0}
"""How many times faster than a published path tokcomp was to be, at 2,880 tokens."""
SHARE = 0.03
"""What share of a compressed prefill selecting was to take at most, 576 tokens, batch 1."""
_HOST = 0.93  # from this share of a call on, the host is what takes the time


def published(record: dict[str, Any]) -> str:
    """The same selections by re-created published code paths."""
    lines: list[str] = []
    missed: list[str | None] = []
    gpu = "gpu" in record["machine"]
    peaks = {cell_key(row): row["increase_bytes"] for row in of_kind(record, "memory")}
    for title, rows in by_cell(of_kind(record, "beside published") + of_kind(record, "baseline")):
        ours = {row["side"].split()[0]: row for row in rows if row["kind"] != "baseline" and row["side"] != "dense"}
        dense = next((row for row in rows if row["side"] == "dense"), None)
        body = [] if dense is None else [["dense", interval(dense), "", gigabytes(peaks.get(cell_key(dense)))]]
        for row in rows:
            if row["side"] == "dense":
                continue
            mine = ours.get(row["side"].split()[1]) if row["kind"] == "baseline" else None
            missed.append(None if mine is None else _missed(mine, row, gpu))
            gain = "" if mine is None else f"{row['ms'] / mine['ms']:.2f}"
            body.append([row["side"], interval(row), gain, gigabytes(peaks.get(cell_key(row)))])
        head = ["", "prefill, ms", "tokcomp is faster by", "peak on top of the weights"]
        lines += [f"**{title}**", "", *table_of(head, body), ""]
    told = [text for text in missed if text is not None]
    if lines and told:
        lines.append(f"Less than was aimed at: {'; '.join(told)}.")
    return "\n".join(lines)


def _missed(mine: dict[str, Any], row: dict[str, Any], gpu: bool) -> str | None:
    gain, aim = row["ms"] / mine["ms"], GAINS[row["side"].split()[1]]
    if gain >= aim:
        return None
    busy = gpu and mine["host_ms"] > _HOST * mine["ms"] and row["host_ms"] > _HOST * row["ms"]
    why = ", and both take as long as the host needs for launching them" if busy else ""
    return f"{row['side']}, {gain:.2f} times instead of {aim:g}{why}"


def selecting(record: dict[str, Any]) -> str:
    """Which strategies take more of a prefill for selecting than they were to."""
    found = of_kind(record, "selection")
    if not found:
        return ""
    above = [f"{row['side']} ({percent(row['share'], 1)})" for row in found if row["share"] > SHARE]
    if not above:
        return f"Selecting takes at most {percent(SHARE)} of the prefill everywhere."
    held = (" The clock runs from the first of these operations to the last one; where the host cannot keep up with the device, "
            "as at batch 1, it counts launches.") if "gpu" in record["machine"] else ""  # fmt: skip
    return f"Selecting takes more than the {percent(SHARE)} that were aimed at in: {', '.join(above)}.{held}"
