"""What sweeps and reports take, from the records of ``make bench-sweeps``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "results"


def measured() -> str:
    """One line per record that is there."""
    lines = [line for make in (_sweep, _launchers, _kills, _report) for line in make()]
    return "\n".join(["| | measured | by |", "|---|---|---|", *lines]) if lines else ""


def _record(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": []}


def _line(record: dict[str, Any], what: str, told: str) -> str:
    return f"| {what} | {told} | `{record['command']}` |"


def _sweep() -> list[str]:
    record = _record("overhead")
    return [
        _line(
            record,
            f"{row['jobs']} combinations, {row['questions']} questions each, one process and thread",
            f"{row['processor_seconds']:.0f} s of one processor, {row['model_processor_seconds'] / row['processor_seconds']:.0%} "
            f"of them the model's; {row['overhead_per_job_processor_seconds']:.2f} s beside the model per job, "
            f"{row['start_processor_seconds']:.1f} s before the first one",
        )
        for row in record["rows"]
    ]


def _launchers() -> list[str]:
    record = _record("launchers")
    told = [
        f"{row['launcher']}: {row['runs']} runs in {row['seconds']:.0f} s, "
        + ("the same table" if row["same_table"] else "**another table**")
        for row in record["rows"]
    ]
    told += [f"{name}: not installed" for name in record.get("left_out", ())]
    return [_line(record, "one sweep by every launcher", "; ".join(told))] if told else []


def _kills() -> list[str]:
    record = _record("kills")
    return [
        _line(
            record,
            f"one sweep of {row['runs']} runs, {row['kills']} times SIGKILL",
            f"{row['damaged']} damaged records; finished by the same command, its table is "
            + ("that" if row["same"] else "**not that**")
            + " of an undisturbed sweep",
        )
        for row in record["rows"]
    ]


def _report() -> list[str]:
    record = _record("report")
    return [
        _line(
            record,
            f"`tokcomp report` on {row['runs']:,} runs ({row['store_megabytes']:.0f} MB)",
            f"{row['processor_seconds']:.0f} s of one processor ({row['seconds']:.0f} s by the clock), "
            f"{row['peak_megabytes']:.0f} MB of memory; the page has {row['page_megabytes']:.0f} MB",
        )
        for row in record["rows"]
    ]
