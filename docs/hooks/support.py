"""Markdown tables of the support matrix, from the file that its tests wrote."""

from __future__ import annotations

import json
from pathlib import Path

from tokcomp.models.support import matrix, overview

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
STAGES = ("vision", "prefill", "cache")


def families() -> str:
    """What every family was tested with, and with how many strategies each way of use works."""
    ways = matrix()["ways"]
    lines = ["| family | class | CLS token | " + " | ".join(ways) + " |", "|---|---|---|" + "---:|" * len(ways)]
    for name, cls, counts in overview():
        cls_token = "yes" if matrix()["families"][name]["cls_token"] else "no"
        cells = [f"{yes} of {total}" if total else "-" for yes, total in counts.values()]
        lines.append(f"| `{name}` | `{cls}` | {cls_token} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def attached() -> str:
    """What being attached costs each family when nothing is compressed."""
    path = RESULTS / "attach.json"
    if not path.is_file():
        return "_No record is committed yet: `python -m benchmarks.attach --out benchmarks/results/attach.json` writes it._"
    record = json.loads(path.read_text(encoding="utf-8"))
    machine = record["machine"]
    lines = [f"{machine['cpu']}, one thread; torch {machine['torch']}, transformers {machine['transformers']}.", "",
             "| family | prefill | attached | 95 % interval | rounds |", "|---|---:|---:|---:|---:|"]  # fmt: skip
    for name, row in record["families"].items():
        cost, low, high = (f"{100 * row[field]:+.2f} %" for field in ("overhead", "low", "high"))
        lines.append(f"| `{name}` | {1e3 * row['plain']:.1f} ms | {cost} | {low} to {high} | {row['rounds']} |")
    return "\n".join(lines)


def strategies() -> str:
    """One table per stage: strategy by family; a cell tells the ways that work, or points to why one does not."""
    reasons: dict[str, int] = {}
    parts = []
    for stage in ("none", *STAGES):
        rows = {key: row for key, row in matrix()["cells"].items() if key.partition("/")[0] == stage}
        names = list(matrix()["families"])
        title = "No strategy" if stage == "none" else f"`{stage}=`"
        lines = [f"### {title}", "", "| strategy | " + " | ".join(f"`{name}`" for name in names) + " |",
                 "|---|" + "---|" * len(names)]  # fmt: skip
        for key, row in rows.items():
            strategy = key.partition("/")[2]
            cells = [_cell(row.get(name, {}), strategy, reasons) for name in names]
            lines.append(f"| `{strategy}` | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    notes = [f"{number}. {_escaped(reason)}" for reason, number in reasons.items()]
    return "\n\n".join([*parts, "### Why not", "\n".join(notes) or "Nothing was refused."])


def _cell(ways: dict[str, str], strategy: str, reasons: dict[str, int]) -> str:
    if not ways:
        return "not run"
    refused = {way: result for way, result in ways.items() if result != "yes"}
    if not refused:
        return "all"
    notes: dict[int, list[str]] = {}
    for way, result in refused.items():
        result = result.replace(f"'{strategy}'", "'…'")  # strategies that are refused for one reason share its number
        notes.setdefault(reasons.setdefault(result, len(reasons) + 1), []).append(way)
    if len(refused) == len(ways) and len(notes) == 1:
        return f"no ({next(iter(notes))})"
    return "all but " + ", ".join(f"{', '.join(found)} ({number})" for number, found in notes.items())


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "\\|").replace("[", "\\[").replace("]", "\\]")
