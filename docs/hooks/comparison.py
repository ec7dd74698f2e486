"""The comparison of all strategies: tables and curves of the committed records."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import tables

from tokcomp.registry import REGISTRIES

REASONS = "reasons.jsonl"
STAGES = ("vision", "prefill", "cache")
CONTROLS = ("random", "uniform")
BUDGETS = {"50": "50 %", "25": "25 %", "11": "11 %", "06": "6 %"}
AXES = {
    "tokens": "equivalent vision tokens",
    "flops": "FLOPs, % of dense",
    "kv": "KV cache, % of dense",
}
MARKERS = "osD^vP*X<>hp"

Lines = dict[str, dict[str, tables.Entry]]
"""By strategy and budget."""


def read(folder: Path) -> dict[str, Lines]:
    """The committed records by stage, strategy and budget."""
    found: dict[str, Lines] = {stage: defaultdict(dict) for stage in STAGES}
    for entry in tables.read(folder):
        stage, _, rest = entry.name.partition("-")
        name, _, budget = rest.rpartition("-")
        found[stage][name][budget] = entry
    return found


def library(folder: Path) -> str:
    """A table and the curves per stage, and what could not be brought to a budget."""
    found = read(folder)
    if not any(found.values()):
        return ""
    parts = []
    for stage in STAGES:
        if found[stage]:
            parts += [f"## {stage}", "", _table(found[stage]), ""]
            if (folder.parent.parent / "images" / f"library-{stage}.svg").is_file():
                parts += [f"![Accuracy of the {stage} strategies](images/library-{stage}.svg){{ .wide }}", ""]
    parts += ["## What each of them cost", "", _costs(found), "", "## What could not be brought to a budget", "",
              _reasons(folder, found), "", _made_on(found)]  # fmt: skip
    return "\n".join(parts)


def _ranked(lines: Lines) -> list[str]:
    """Strategies by their mean accuracy; those with fewer budgets behind those with more."""

    def worth(name: str) -> tuple[int, float, str]:
        entries = lines[name].values()
        return -len(entries), -fmean(entry.sides[1].accuracy.overall for entry in entries), name

    return sorted(lines, key=worth)


def _table(lines: Lines) -> str:
    first = next(iter(next(iter(lines.values())).values()))
    dense = first.sides[0].accuracy.overall
    rows = [
        f"| accuracy, dense {100 * dense:.1f} % | " + " | ".join(BUDGETS.values()) + " |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in _ranked(lines):
        found = [lines[name].get(budget) for budget in BUDGETS]
        rows.append(f"| `{name}` | " + " | ".join("" if entry is None else _accuracy(entry) for entry in found) + " |")
    return "\n".join(rows)


def _accuracy(entry: tables.Entry) -> str:
    low, high = entry.sides[1].accuracy.interval
    return f"{100 * entry.sides[1].accuracy.overall:.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def _costs(found: dict[str, Lines]) -> str:
    rows = ["| `tokcomp run experiment=library …` | equivalent tokens | last layer | FLOPs | KV cache | accuracy |",
            "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    for stage in STAGES:
        for name in sorted(found[stage]):
            for budget in BUDGETS:
                if budget in found[stage][name]:
                    entry = found[stage][name][budget]
                    cost = _cost(entry)
                    rows.append(
                        f"| `{entry.choice}` | {cost['tokens']:.3g} | {entry.sides[1].tokens.vision_tokens[-1]:.3g} "
                        f"| {cost['flops']:.1f} % | {cost['kv']:.1f} % | {_accuracy(entry)} |"
                    )
    return "\n".join(rows)


def _cost(entry: tables.Entry) -> dict[str, float]:
    dense, after = entry.sides
    return {
        "tokens": after.tokens.equivalent_tokens,
        "flops": 100 * after.flops["total"] / dense.flops["total"],
        "kv": 100 * after.kv_bytes / dense.kv_bytes,
    }


def at_a_glance(entry: tables.Entry) -> str:
    """Accuracy and what is left of the dense model's cost, in one line."""
    cost = _cost(entry)
    return f"accuracy {_accuracy(entry)} %, FLOPs {cost['flops']:.0f} %, cache {cost['kv']:.0f} %"


def _reasons(folder: Path, found: dict[str, Lines]) -> str:
    """One line per strategy and reason; and what has neither an entry nor a reason, which nobody has run yet."""
    path = folder / REASONS
    written = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    told: dict[tuple[str, str], list[int]] = defaultdict(list)
    for one in map(json.loads, written):
        name, _, budget = one["key"].rpartition("-")
        told[name, one["reason"]].append(int(budget))
    lines = [
        f"- `{name}` at {', '.join(map(str, sorted(budgets, reverse=True)))} %: {reason}"
        for (name, reason), budgets in told.items()
    ]
    known = {name for name, _ in told} | {f"{stage}-{name}" for stage, names in found.items() for name in names}
    every = [f"{stage}-{name}" for stage, registry in REGISTRIES.items() for name in registry]
    lines += [f"- `{name}`: no run is committed yet" for name in every if name not in known]
    return "\n".join(lines)


def _made_on(found: dict[str, Lines]) -> str:
    every = [entry for lines in found.values() for entries in lines.values() for entry in entries.values()]
    accuracy = every[0].sides[0].accuracy
    return (
        f"{accuracy.samples} questions per run, {accuracy.headline_samples} of them in the accuracy, which stands with its "
        f"95 % interval; {len(every)} runs, made by `make library`."
    )


def draw(folder: Path, images: Path) -> None:
    """Accuracy against equivalent tokens, FLOPs and KV bytes, one figure per stage."""
    found = read(folder)
    for stage in STAGES:
        if found[stage]:
            _draw_stage(stage, found[stage], images / f"library-{stage}.svg")


def _draw_stage(stage: str, lines: Lines, path: Path) -> None:
    import matplotlib as mpl

    from tokcomp.report.style import INK, MUTED, RULE, figure, styled

    with styled(), mpl.rc_context({"svg.hashsalt": "tokcomp", "svg.fonttype": "none"}):
        drawn = figure(11.0, 4.6)
        panels = drawn.subplots(1, len(AXES), sharey=True)
        colours = mpl.colormaps["tab20"].colors
        dense = next(iter(next(iter(lines.values())).values())).sides[0].accuracy.overall
        for panel, (axis, label) in zip(panels, AXES.items(), strict=True):
            panel.axhline(100 * dense, color=RULE, linewidth=1.0)
            for number, name in enumerate(_ranked(lines)):
                _curve(
                    panel, list(lines[name].values()), axis, name, colours[number % 20], MARKERS[number % len(MARKERS)]
                )
            panel.set_xlabel(label)
            panel.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("accuracy, %")
        panels[0].annotate("dense", (0.01, 100 * dense), xycoords=("axes fraction", "data"), va="bottom", color=MUTED)
        handles, names = panels[0].get_legend_handles_labels()
        drawn.legend(handles, names, loc="lower center", ncols=8, frameon=False, labelcolor=INK, fontsize=8)
        drawn.subplots_adjust(left=0.06, right=0.99, top=0.96, bottom=0.28, wspace=0.06)
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path, metadata={"Date": None, "Creator": None})


def _curve(panel: Any, entries: Sequence[tables.Entry], axis: str, name: str, colour: Any, marker: str) -> None:
    points = sorted((_cost(entry)[axis], 100 * entry.sides[1].accuracy.overall) for entry in entries)
    control = name in CONTROLS
    panel.plot(*zip(*points, strict=True), label=name, color="#9aa4ae" if control else colour, marker=marker, markersize=4,
               linewidth=1.2, linestyle="--" if control else "-")  # fmt: skip
