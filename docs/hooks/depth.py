"""Tables of the page on `scenes-hard`, from the summary that `python -m benchmarks.depth` writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokcomp.embedded.hard.questions import LONG_KINDS
from tokcomp.measure.intervals import wilson

SUMMARY = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "scenes-hard.json"
_DEPTH = ("random", "uniform", "dart", "fastv", "oracle", "no objects")


@cache
def summary() -> dict[str, Any] | None:
    """The committed summary, or None."""
    return json.loads(SUMMARY.read_text(encoding="utf-8")) if SUMMARY.exists() else None


def share(right: int, asked: int) -> str:
    """A share of right answers in per cent, with its 95 % interval."""
    low, high = wilson(right, asked)
    return f"{100 * right / asked:.1f} ({100 * low:.0f} to {100 * high:.0f})"


def _cells(table: str) -> list[dict[str, Any]]:
    found = summary()
    return [] if found is None else [cell for cell in found["cells"] if cell["table"] == table]


def _grid(cells: list[dict[str, Any]], rows: list[str], columns: list[float], corner: str,
          head: Callable[[float], str]) -> str:  # fmt: skip
    """Accuracy of every (strategy, where)."""
    told = {
        (cell["strategy"], cell["where"]): share(cell["right"], cell["samples"]) + cell.get("note", "")
        for cell in cells
    }
    columns = [column for column in columns if any((row, column) in told for row in rows)]
    lines = [f"| {corner} | {' | '.join(map(head, columns))} |", "|---|" + "---:|" * len(columns)]
    for row in rows:
        lines.append(f"| {row} | {' | '.join(told.get((row, column), '') for column in columns)} |")
    asked = sorted({cell["samples"] for cell in cells})
    return "\n".join([*lines, "", f"{' or '.join(map(str, asked))} questions a figure; a gap was not run."])


def _ranked(cells: list[dict[str, Any]], where: float) -> list[str]:
    """Strategies, the best at ``where`` first, the rest behind."""
    at = {cell["strategy"]: cell["right"] for cell in cells if cell["where"] == where}
    names = dict.fromkeys(cell["strategy"] for cell in cells)
    return sorted(names, key=lambda name: -at.get(name, -1))


def _noted(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell of ``tome (39)`` is one of ``tome``, with a note of the tokens that it kept."""
    name, _, kept = cell["strategy"].partition(" (")
    return {**cell, "strategy": name, "note": f" [{kept.rstrip(')')}]" if kept else ""}


def baselines() -> str:
    """Dense, no image, background only; in all and by kind."""
    cells = {cell["strategy"]: cell for cell in _cells("baseline") if cell["strategy"] != "dense long"}
    if "dense" not in cells:
        return ""
    lines = [f"| kind | {' | '.join(cells)} |", "|---|" + "---:|" * len(cells)]
    lines.append("| **all** | " + " | ".join(share(c["right"], c["samples"]) for c in cells.values()) + " |")
    for kind in cells["dense"]["by_kind"]:
        name = f"{kind} (long)" if kind in LONG_KINDS else kind
        told = [f"{100 * c['by_kind'][kind][0] / c['by_kind'][kind][1]:.0f}" for c in cells.values()]
        lines.append(f"| {name} | {' | '.join(told)} |")
    return "\n".join([*lines, "", f"{cells['dense']['samples']} questions."])


def vision() -> str:
    """Vision stage, by tokens kept."""
    cells = [_noted(cell) for cell in _cells("vision")]
    rows = _ranked(cells, 36)
    return _grid(cells, rows, [72, 36, 18], "strategy", lambda n: f"{n:g} of 144") if cells else ""


def prefill() -> str:
    """Filters before layer 5, by tokens kept."""
    cells = [*_cells("prefill"), *({**cell, "where": 36} for cell in _cells("layer") if cell["where"] == 5)]
    cells = [cell for cell in cells if cell["strategy"] != "no objects"]
    rows = _ranked(cells, 36)
    return _grid(cells, rows, [72, 36, 18], "strategy", lambda n: f"{n:g} of 144") if cells else ""


def layers() -> str:
    """Filters that keep 36 tokens, by the layer before which the others leave."""
    cells = _cells("layer")
    columns = sorted({cell["where"] for cell in cells})
    rows = [name for name in _DEPTH if any(cell["strategy"] == name for cell in cells)]
    turned = [{**cell, "strategy": f"{cell['where']:g}", "where": rows.index(cell["strategy"])} for cell in cells]
    names = [f"{column:g}" for column in columns]
    places = list(map(float, range(len(rows))))
    return _grid(turned, names, places, "layer", lambda place: rows[int(place)]) if cells else ""


def caches() -> str:
    """Cache policies, by share of the entries kept."""
    cells = _cells("cache")
    rows = _ranked(cells, 0.25)
    return _grid(cells, rows, [0.5, 0.25, 0.125], "policy", lambda n: f"{100 * n:g} %") if cells else ""


def steps() -> str:
    """Accuracy of long answers by the step after which vision entries leave."""
    cells = _cells("step")
    rows = sorted({cell["strategy"] for cell in cells})
    columns = sorted({cell["where"] for cell in cells})
    return _grid(cells, rows, columns, "after step", lambda n: f"{n:g}") if cells else ""


def gaze() -> str:
    """Attention on vision tokens by layer."""
    found = summary()
    if found is None or found["gaze"] is None:
        return ""
    rows = found["gaze"]["rows"]
    lines = [f"| layer | {' | '.join(rows)} |", "|---:|" + "---:|" * len(rows)]
    for layer in range(len(next(iter(rows.values())))):
        told = [f"{100 * v[layer]['vision']:.0f} ({100 * v[layer]['glyph_share']:.0f})" for v in rows.values()]
        lines.append(f"| {layer} | {' | '.join(told)} |")
    return "\n".join([*lines, "", f"Mean over {found['gaze']['samples']} questions and all heads."])


TABLES = {
    "hard-baselines": baselines, "hard-vision": vision, "hard-prefill": prefill, "hard-layers": layers,
    "hard-caches": caches, "hard-steps": steps, "hard-gaze": gaze,
}  # fmt: skip
"""What a page may ask for, by the name in its mark."""
