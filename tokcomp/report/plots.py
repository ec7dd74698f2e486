"""Figures of a study: Pareto front, accuracy by kind of question, stage by stage, main effects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokcomp.report.rows import STAGES, Row
from tokcomp.report.study import COSTS, Study, pareto_front
from tokcomp.report.style import GROUPS, INK, LEFT, MUTED, figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["write_figures"]

_MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
_COLOURS = (GROUPS[5], LEFT, GROUPS[2], GROUPS[3], GROUPS[4], GROUPS[0], MUTED, INK)
_SHOWN = 24  # runs of the figure by kind of question, the most accurate ones


def write_figures(study: Study, folder: Path) -> list[Path]:
    """Draw every figure that the study has enough runs for, as PNG and PDF.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with styled():
        written = []
        for name, drawn in _figures(study).items():
            for kind in ("png", "pdf"):
                drawn.savefig(folder / f"{name}.{kind}", dpi=160, bbox_inches="tight")
                drawn.set_layout_engine("none")  # laid out once is enough
                written.append(folder / f"{name}.{kind}")
    return written


def _figures(study: Study) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for cost in COSTS:
        if len({getattr(row, cost) for row in study.rows}) > 1:
            figures[f"pareto-{cost.replace('_', '-')}"] = _pareto(study, cost)
    figures["kinds"] = _kinds(study)
    varied = [stage for stage in STAGES if len(study.options(stage)) > 1]
    for place, first in enumerate(varied):
        for second in varied[place + 1 :]:
            figures[f"{first}-by-{second}"] = _heat(study, first, second)
    if varied:
        figures["effects"] = _effects(study, varied)
    return figures


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    drawn = figure(width, height)
    drawn.set_layout_engine("constrained")
    axes = drawn.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return drawn, axes


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _pareto(study: Study, cost: str) -> Figure:
    drawn, axes = _canvas(6.4, 4.4)
    rows = [row for row in study.rows if getattr(row, cost) is not None]
    prefills, visions = study.options("prefill"), study.options("vision")
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.stages[:2], []).append(row)
    for (vision, prefill), group in groups.items():
        axes.plot(
            [getattr(row, cost) for row in group], [100 * row.accuracy for row in group],
            _MARKS[prefills.index(prefill) % len(_MARKS)], color=_colour(visions.index(vision)),
            markersize=5, alpha=0.75, markeredgewidth=0, rasterized=len(rows) > 1000,
        )  # fmt: skip
    front = [rows[number] for number in pareto_front(rows, cost)]
    axes.step([getattr(row, cost) for row in front], [100 * row.accuracy for row in front], where="post",
              color="0.35", linewidth=1, zorder=0)  # fmt: skip
    axes.axhline(100 * float(np.mean([row.dense_accuracy for row in rows])), color="0.6", linestyle=":", linewidth=1)
    share = cost != "equivalent_tokens"
    axes.set_xlabel(f"{COSTS[cost]}, share of the dense model" if share else COSTS[cost])
    axes.set_ylabel("accuracy, %")
    for number, vision in enumerate(visions[:10]):
        axes.plot([], [], "o", color=_colour(number), label=f"vision={vision}")
    if len(prefills) > 1:
        for number, prefill in enumerate(prefills[:10]):
            axes.plot([], [], _MARKS[number % len(_MARKS)], color="0.4", label=f"prefill={prefill}")
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return drawn


def _kinds(study: Study) -> Figure:
    kinds = sorted({kind for row in study.rows for kind in row.by_kind})
    rows = sorted(study.rows, key=lambda row: -row.accuracy)[:_SHOWN]
    table = np.array([[100 * row.by_kind.get(kind, np.nan) for kind in kinds] for row in rows])
    names = [" · ".join("-" if stage == "none" else stage for stage in row.stages) for row in rows]
    return _table(table, names, kinds, "accuracy by kind of question, %: vision · prefill · cache", "viridis", (0, 100))


def _heat(study: Study, first: str, second: str) -> Figure:
    means = 100 * study.means(first, second)
    return _table(means, list(study.options(first)), list(study.options(second)), f"mean accuracy, %: {first} by {second}",
                  "viridis", (float(np.nanmin(means)), float(np.nanmax(means))))  # fmt: skip


def _table(values: np.ndarray, rows: list[str], columns: list[str], title: str, colours: str,
           limits: tuple[float, float]) -> Figure:  # fmt: skip
    drawn, axes = _canvas(2.2 + 0.62 * len(columns), 1.4 + 0.3 * len(rows))
    low, high = limits
    axes.imshow(values, cmap=colours, vmin=low, vmax=high if high > low else low + 1, aspect="auto")
    axes.set_xticks(
        range(len(columns)), [name.replace("_", " ") for name in columns], rotation=40, ha="right", fontsize=8
    )
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.tick_params(length=0)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = value < low + 0.6 * (high - low)
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color="w" if dark else "k")
    return drawn


def _effects(study: Study, stages: list[str]) -> Figure:
    drawn, axes = _canvas(6.4, 0.8 + 0.26 * sum(len(study.options(stage)) for stage in stages))
    names, values, colours = [], [], []
    for number, stage in enumerate(stages):
        for name, effect in study.effects(stage).items():
            names.append(f"{stage}={name}")
            values.append(100 * effect)
            colours.append(_colour(number))
    axes.barh(range(len(names)), values, color=colours)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="0.3", linewidth=0.8)
    axes.set_xlabel("main effect on accuracy, points")
    return drawn
