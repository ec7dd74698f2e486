"""The text above the panels: question, both answers, pipeline, what was saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokcomp.pipeline import Pipeline
from tokcomp.report.story import Story
from tokcomp.report.style import BLUE, INK, LEFT, MUTED, figure

__all__ = ["Header", "saved", "wrap"]

_LABEL = 1.0  # inches that the labels take


@dataclass(frozen=True)
class _Line:
    text: str
    size: float
    label: str = ""
    colour: str = INK
    bold: bool = False

    @property
    def height(self) -> float:
        return self.size * 1.55 / 72


class Header:
    """Lines that are broken to ``width`` inches; :attr:`height` is what they need."""

    def __init__(self, story: Story, pipeline: Pipeline, model: str, width: float) -> None:
        same = story.dense == story.compressed
        stages = {"vision": pipeline.vision, "prefill": pipeline.prefill, "cache": pipeline.cache}
        names = " + ".join(f"{strategy.name} ({stage})" for stage, strategy in stages.items() if strategy is not None)
        answer = story.compressed or "(nothing)"
        effect = f"{saved(story)}; {'the same' if same else 'another'} answer"
        self.lines = [
            *_broken(story.question, width, size=13.0, bold=True),
            *_broken(story.dense or "(nothing)", width - _LABEL, label="dense", size=10.0),
            *_broken(answer, width - _LABEL, label="compressed", size=10.0, colour=BLUE if same else LEFT),
            *_broken(f"{names or 'no stage acts'}, {model}", width - _LABEL, label="pipeline", size=8.5, colour=MUTED),
            *_broken(effect, width - _LABEL, label="effect", size=8.5, colour=MUTED),
        ]
        self.height = sum(line.height for line in self.lines)

    def write(self, canvas: Any, left: float, top: float) -> None:
        """Write the lines, ``left`` and ``top`` inches from the corner."""
        width, height = canvas.get_size_inches()
        labelled = False
        for line in self.lines:
            y = 1 - top / height
            labelled = labelled or bool(line.label)
            indent = left + (_LABEL if labelled else 0)
            weight = "bold" if line.bold else "normal"
            canvas.text(left / width, y, line.label, va="top", fontsize=line.size, color=MUTED)
            canvas.text(indent / width, y, line.text, va="top", fontsize=line.size, color=line.colour, weight=weight)
            top += line.height


def saved(story: Story) -> str:
    """What compression saves, in words."""
    entries, dense = sum(story.cache.prefill), story.cache.dense[0] * len(story.cache.prefill)
    return (
        f"vision tokens, mean over layers, {story.image_tokens} → {story.equivalent_tokens:.4g} "
        f"({_change(story.equivalent_tokens, story.image_tokens)}), "
        f"KV entries after the prefill {dense:,} → {entries:,.0f} ({_change(entries, dense)})"
    )


def _change(now: float, before: float) -> str:
    return "unchanged" if now == before else f"{100 * (now / before - 1):+.0f} %"


def _broken(text: str, width: float, *, size: float, label: str = "", **style: Any) -> list[_Line]:
    weight = "bold" if style.get("bold") else "normal"
    lines = wrap(text, width, _ruler(size, weight), limit=3)
    return [_Line(line, size, label if number == 0 else "", **style) for number, line in enumerate(lines)]


def _ruler(size: float, weight: str) -> Callable[[str], float]:
    """Gives the width of a text in inches."""
    from matplotlib.font_manager import FontProperties

    canvas = figure(1, 1).canvas
    renderer, font = canvas.get_renderer(), FontProperties(size=size, weight=weight)
    return lambda text: float(renderer.get_text_width_height_descent(text, font, ismath=False)[0]) / canvas.figure.dpi


def wrap(text: str, width: float, measure: Callable[[str], float], *, limit: int) -> list[str]:
    """Break a text into at most ``limit`` lines of ``width``; what does not fit ends in an ellipsis. Words that are wider
    than a line (and scripts without spaces) break anywhere."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if measure(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and measure(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) <= limit:
        return lines
    last = lines[limit - 1]
    while last and measure(f"{last} …") > width:
        last = last[:-1]
    return [*lines[: limit - 1], f"{last.rstrip()} …"]
