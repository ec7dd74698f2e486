"""Lays out the picture of one question: answers, what each stage kept, cache, legend."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tokcomp.pipeline import Pipeline
from tokcomp.report.cache import draw_lengths
from tokcomp.report.header import Header
from tokcomp.report.patches import draw_cached, draw_cut, draw_seen, draw_vision, group_tints
from tokcomp.report.story import Story
from tokcomp.report.style import GONE, GROUPS, INK, KEY, LEFT, MUTED, figure

__all__ = ["Panel", "draw", "panels_of", "place"]

MAX_CUTS = 8
_CELL, _GAP, _MARGIN, _TITLE, _INSET = 2.75, 0.3, 0.35, 0.52, 0.3  # inches


@dataclass(frozen=True)
class Panel:
    """One picture of the row: its two lines of title and how it is drawn. ``draw`` may give an image for a colour bar."""

    title: str
    note: str
    draw: Callable[[Any], Any]


def panels_of(story: Story, pipeline: Pipeline) -> list[Panel]:
    """The panels over the image: as seen, after the vision stage, after each cut (at most 8 of them), in the cache."""
    size = f"{story.seen.shape[1]} x {story.seen.shape[0]} pixels, {story.image_tokens} tokens"
    panels = [Panel("What the model sees", size, partial(draw_seen, story=story))]
    if pipeline.vision is not None:
        panels.append(
            Panel(
                f"vision · {pipeline.vision.name}",
                _counted(story.image_tokens, story.after_vision),
                partial(draw_vision, story=story),
            )
        )
    if pipeline.prefill is not None:
        for layer in _shown(list(story.alive)):
            note = _counted(story.vision_tokens[layer], story.vision_tokens[layer + 1])
            title = f"prefill · {pipeline.prefill.name}, after layer {layer}"
            panels.append(Panel(title, note, partial(draw_cut, story=story, layer=layer)))
    if pipeline.cache is not None:
        title, note = f"cache · {pipeline.cache.name}", "share of all heads that hold it at the end"
        panels.append(Panel(title, note, partial(draw_cached, story=story)))
    return panels


def _counted(before: int, after: int) -> str:
    return f"{before} → {after} tokens" if after != before else f"{before} tokens, none left out"


def _shown(cuts: list[int]) -> list[int]:
    """All cuts, or eight spread over them with the first and the last."""
    if len(cuts) <= MAX_CUTS:
        return cuts
    return [cuts[round(i * (len(cuts) - 1) / (MAX_CUTS - 1))] for i in range(MAX_CUTS)]


def draw(story: Story, pipeline: Pipeline, model: str) -> Any:
    """The whole picture as a matplotlib figure."""
    panels = panels_of(story, pipeline)
    columns = _columns(len(panels) + 1)
    rows = math.ceil((len(panels) + 1) / columns)
    cell = (_CELL, _CELL * min(max(story.seen.shape[0] / story.seen.shape[1], 0.5), 1.6))
    width = 2 * _MARGIN + columns * _CELL + (columns - 1) * _GAP
    header = Header(story, pipeline, model, width - 2 * _MARGIN)
    top = _MARGIN + header.height
    legend = 0.35 if pipeline.vision is not None or pipeline.prefill is not None else 0.0
    height = top + rows * (cell[1] + _TITLE) + (rows - 1) * 0.12 + 0.55 + legend
    canvas = figure(width, height)
    header.write(canvas, _MARGIN, _MARGIN)
    for number, panel in enumerate(panels):
        axes = place(canvas, number % columns, number // columns, cell, top)
        _titled(axes, panel.title, panel.note)
        _with_bar(canvas, axes, panel.draw(axes))
    number = len(panels)
    axes = place(canvas, number % columns, number // columns, cell, top, span=columns - number % columns, inset=_INSET)
    _titled(axes, "KV cache", "entries per layer, text included")
    draw_lengths(axes, story)
    if legend:
        _legend(canvas, story, pipeline)
    return canvas


def _columns(cells: int) -> int:
    return max(cells, 3) if cells <= 4 else 3 if cells in (5, 6, 9) else 4


def place(canvas: Any, column: int, row: int, cell: tuple[float, float], top: float, *, span: int = 1,
          inset: float = 0.0) -> Any:  # fmt: skip
    """Axes at a place of the grid of panels; ``top`` inches are taken by the header, ``inset`` by the axis' labels."""
    width, height = canvas.get_size_inches()
    left = _MARGIN + column * (_CELL + _GAP) + inset
    lower = top + row * (cell[1] + _TITLE + 0.12) + _TITLE + cell[1]
    inches = (left, height - lower, span * cell[0] + (span - 1) * _GAP - inset, cell[1])
    return canvas.add_axes((inches[0] / width, inches[1] / height, inches[2] / width, inches[3] / height))


def _titled(axes: Any, title: str, note: str) -> None:
    axes.annotate(title, (0, 1), (0, 18), xycoords="axes fraction", textcoords="offset points", weight="bold",
                  fontsize=9.0)  # fmt: skip
    axes.annotate(note, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", color=MUTED, fontsize=8.0)


def _with_bar(canvas: Any, axes: Any, image: Any) -> None:
    if image is None:
        return
    inset = axes.inset_axes((0.0, -0.075, 1.0, 0.03))
    bar = canvas.colorbar(image, cax=inset, orientation="horizontal", ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.ax.set_xticklabels(["0", "25 %", "50 %", "75 %", "100 %"], fontsize=7)
    bar.ax.tick_params(length=2, pad=1)


def _legend(canvas: Any, story: Story, pipeline: Pipeline) -> None:
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[tuple[str, Any]] = [("goes on", _swatch("white"))]
    if group_tints(story.owner, story.grid)[0].any():
        entries.append(
            ("merged, one tint per group", tuple(Patch(facecolor=tint, edgecolor=INK) for tint in GROUPS[:3]))
        )
    if pipeline.prefill is not None:
        entries.append(("leaves after this layer", _swatch(LEFT)))
    if pipeline.prefill is not None or (story.owner < 0).any():
        entries.append(("left before", _swatch(GONE)))
    if story.keys.any():
        star = Line2D([], [], marker="*", color="none", markerfacecolor=KEY, markeredgecolor=INK, markersize=9)
        entries.append(("key token", star))
    width, height = canvas.get_size_inches()
    canvas.legend(handles=[handle for _, handle in entries], labels=[label for label, _ in entries], loc="lower left",
                  bbox_to_anchor=(_MARGIN / width, 0.12 / height), ncols=len(entries), frameon=False, fontsize=8.0,
                  handlelength=1.6, columnspacing=1.8, borderaxespad=0.0, borderpad=0.0,
                  handler_map={tuple: HandlerTuple(ndivide=None, pad=0.0)})  # fmt: skip


def _swatch(colour: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, edgecolor=INK)
