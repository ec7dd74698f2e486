"""How time and memory grow, from the records of the benchmarks: a drawing, a table, and whether any step is steeper than the
dense model's own."""

from __future__ import annotations

import html
import math
from itertools import pairwise
from typing import Any

__all__ = ["drawing", "steps", "table"]

Rows = list[dict[str, Any]]
AXES = {"image tokens": "image_tokens", "batch": "batch", "layers": "layers"}
# Marks of stages in the site's diagrams: their colours are those of this page's scheme, light or dark.
COLOURS = {"dense": "head", "fastv": "prefill-ink", "mustdrop": "vision-ink", "h2o": "cache-ink"}
_WIDE, _HIGH, _LEFT, _TOP, _GAP = 250, 180, 52, 30, 62
_NOISE = 1.1  # a step counts as steeper where its factor exceeds the dense model's by more than this


def _of(rows: Rows, axis: str) -> dict[str, list[tuple[float, float, float | None]]]:
    """Per side the points ``(place, milliseconds, bytes)`` along one axis."""
    field = AXES[axis]
    mine = [row for row in rows if row.get("axis") == axis]
    peaks = {(row["side"], row[field]): row["increase_bytes"] for row in mine if row["kind"] == "memory"}
    sides: dict[str, list[tuple[float, float, float | None]]] = {}
    for row in mine:
        if row["kind"] == "growth":
            point = row[field], row["ms"], peaks.get((row["side"], row[field]))
            sides.setdefault(row["side"], []).append(point)
    return {side: sorted(points) for side, points in sides.items()}


def table(record: dict[str, Any]) -> str:
    """Time and memory at every place of every axis."""
    lines: list[str] = []
    for axis in AXES:
        sides = _of(record["rows"], axis)
        if not sides:
            continue
        shape = next(row["shape"] for row in record["rows"] if row.get("axis") == axis)
        title = shape if axis != "layers" else "its depth alone differs"
        lines += [
            f"**{axis}** ({title})",
            "",
            f"| {axis} | " + " | ".join(sides) + " |",
            "|---|" + "---:|" * len(sides),
        ]
        for place in sorted({point[0] for points in sides.values() for point in points}):
            cells = [next((_cell(point) for point in points if point[0] == place), "") for points in sides.values()]
            lines.append(f"| {place:,} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join([*lines, "Milliseconds of a prefill, and its peak memory on top of the weights."]) if lines else ""


def _cell(point: tuple[float, float, float | None]) -> str:
    _, ms, peak = point
    return f"{ms:,.0f} ms" + ("" if peak is None else f", {peak / 1e6:,.0f} MB")


def steps(record: dict[str, Any]) -> str:
    """Whether time or memory takes a steeper step anywhere than the dense model does between the same places."""
    steeper, looked = [], 0
    for axis in AXES:
        sides = _of(record["rows"], axis)
        for side, points in sides.items():
            for what, number in (("time", 1), ("memory", 2)):
                own, dense = (_factors(each, number) for each in (points, sides.get("dense", [])))
                for places in own.keys() & dense.keys() if side != "dense" else ():
                    looked += 1
                    if own[places] > _NOISE * dense[places]:
                        steeper.append(f"{what} of {side} from {places[0]:,} to {places[1]:,} {axis}: "
                                       f"times {own[places]:.2f}, dense times {dense[places]:.2f}")  # fmt: skip
    if not looked:
        return ""
    if not steeper:
        return f"Of {looked} steps none is more than 10 % steeper than the dense model's own between the same places."
    return (f"Of {looked} steps {len(steeper)} are more than 10 % steeper than the dense model's own between the same places: "
            + "; ".join(sorted(steeper)) + ".")  # fmt: skip


def _factors(points: list[tuple[float, float, float | None]], number: int) -> dict[tuple[float, float], float]:
    found = {}
    for before, after in pairwise(points):
        least, most = before[number], after[number]
        if least and most:
            found[before[0], after[0]] = most / least
    return found


def drawing(record: dict[str, Any]) -> str:
    """Lines on logarithmic axes, as SVG in the page's own colours."""
    found = {axis: sides for axis in AXES if (sides := _of(record["rows"], axis))}
    if not found:
        return ""
    names = list(dict.fromkeys(side for sides in found.values() for side in sides))
    parts = [_panel(sides, axis, column, row, number, title)
             for column, (axis, sides) in enumerate(found.items())
             for row, (number, title) in enumerate(((1, "prefill, ms"), (2, "peak memory, MB")))]  # fmt: skip
    wide, high = len(found) * (_WIDE + _GAP) + _LEFT, 2 * (_HIGH + _GAP) + _TOP + 26
    legend, x = [], _LEFT
    for name in names:
        legend.append(f'<rect class="{_ink(name)}" x="{x}" y="8" width="18" height="4"/>'
                      f'<text class="small" x="{x + 24}" y="14">{html.escape(name)}</text>')  # fmt: skip
        x += 44 + 7 * len(name)
    label = "Time and memory of a prefill, growing with " + ", ".join(found)
    return (f'<svg class="diagram" viewBox="0 0 {wide} {high}" role="img" aria-label="{label}" '
            f'xmlns="http://www.w3.org/2000/svg">{"".join(legend)}{"".join(parts)}</svg>')  # fmt: skip


def _ink(side: str) -> str:
    return COLOURS.get(side.split()[0], "head")


def _panel(sides: dict[str, list[tuple[float, float, float | None]]], axis: str, column: int, row: int, number: int,
           title: str) -> str:  # fmt: skip
    left, top = _LEFT + column * (_WIDE + _GAP), _TOP + row * (_HIGH + _GAP) + 14
    scale = 1e-6 if number == 2 else 1.0
    lines = {side: [(point[0], point[number] * scale) for point in points if point[number]]  # type: ignore[operator]
             for side, points in sides.items()}  # fmt: skip
    every = [point for points in lines.values() for point in points]
    if not every:
        return ""
    (x0, x1), (y0, y1) = (_ends([point[axis] for point in every]) for axis in (0, 1))

    def at(point: tuple[float, float]) -> tuple[float, float]:
        across, up = (math.log(value / low) / math.log(high / low)
                      for value, low, high in zip(point, (x0, y0), (x1, y1), strict=True))  # fmt: skip
        return left + _WIDE * across, top + _HIGH * (1 - up)

    parts = [f'<path class="arrow" d="M{left} {top}V{top + _HIGH}H{left + _WIDE}"/>',
             f'<text class="small" x="{left}" y="{top - 6}">{title}</text>',
             f'<text class="small" x="{left + _WIDE}" y="{top + _HIGH + 30}" text-anchor="end">{axis}</text>']  # fmt: skip
    for place in sorted({point[0] for point in every}):
        x, _ = at((place, y0))
        parts.append(f'<text class="small" x="{x:.0f}" y="{top + _HIGH + 15}" text-anchor="middle">{place:,}</text>')
    for power in range(math.ceil(math.log10(y0)), math.floor(math.log10(y1)) + 1):
        _, y = at((x0, 10.0**power))
        parts.append(f'<text class="small" x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{10.0**power:,g}</text>')
        parts.append(f'<path class="arrow" opacity="0.25" d="M{left} {y:.0f}H{left + _WIDE}"/>')
    for side, points in lines.items():
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in map(at, points))
        parts.append(f'<g class="growth {_ink(side)}"><path class="growth-line" d="{path}"/>'
                     + "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in map(at, points)) + "</g>")  # fmt: skip
    return "".join(parts)


def _ends(values: list[float]) -> tuple[float, float]:
    least, most = min(values), max(values)
    return (least, most) if most > least else (least / 2, least * 2)
