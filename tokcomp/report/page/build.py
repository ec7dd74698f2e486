"""Writes the page of a study: sortable table, interactive Pareto plot, every run with its answers and its picture."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from tokcomp.errors import ConfigurationError
from tokcomp.experiment.result import write_atomically
from tokcomp.report.rows import STAGES, Row, axes_of
from tokcomp.report.study import COSTS, Study, pareto_front

__all__ = ["DETAILED", "write_page"]

DETAILED = 400
"""Runs whose answers the page holds: those on a Pareto front first, then the most accurate ones."""


def write_page(study: Study, path: Path, pictures: Mapping[str, Path] | None = None) -> None:
    """Write the page.

    Args:
        study: the runs.
        path: the HTML file.
        pictures: by key of a run, a PNG of what it kept.

    Raises:
        ConfigurationError: plotly is not installed, or the file cannot be written.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "the page needs plotly, which is not installed: pip install 'tokcomp[report]'"
        ) from error
    here = files("tokcomp.report.page")
    page = here.joinpath("template.html").read_text(encoding="utf-8")
    parts = {
        "TITLE": html.escape(f"tokcomp: {study.root.name}"),
        "STYLE": here.joinpath("page.css").read_text(encoding="utf-8"),
        "PLOTLY": get_plotlyjs(),
        "DATA": _script_safe(_data(study, pictures or {})),
        "SCRIPT": here.joinpath("page.js").read_text(encoding="utf-8"),
    }
    for name, text in parts.items():
        page = page.replace(f"/*{name}*/", text)
    write_atomically(path, page)


def _script_safe(data: Mapping[str, Any]) -> str:
    """JSON inside a script element: an answer with a closing tag must not end it."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _data(study: Study, pictures: Mapping[str, Path]) -> dict[str, Any]:
    questions: list[list[dict[str, str]]] = []
    sets: dict[tuple[tuple[str, ...], ...], int] = {}  # runs of another model have other answers of the dense one
    runs = []
    detailed, settings = _detailed(study), _settings(study.rows)
    for number, row in enumerate(study.rows):
        run = {**_run(study, number), "settings": settings[number]}
        if number in detailed:
            samples = from_json((study.root / "runs" / row.key / "result.json").read_bytes())["samples"]
            asked = row.questions, tuple([sample["dense"] for sample in samples])
            if asked not in sets:
                sets[asked] = len(questions)
                questions.append([{name: sample[name] for name in _QUESTION} for sample in samples])
            run["set"] = sets[asked]
            run["answers"] = [sample["compressed"] for sample in samples]
            run["scores"] = [round(float(score), 4) for score in row.scores]
        if row.key in pictures:
            run["picture"] = base64.b64encode(pictures[row.key].read_bytes()).decode()
        runs.append(run)
    against = "the dense model" if study.baseline is None else f"`{study.baseline.command}`"
    return {
        "runs": runs,
        "questions": questions,
        "failed": len(study.failed) + len(study.unread),
        "against": against,
        "costs": {
            cost: name for cost, name in COSTS.items() if any(getattr(row, cost) is not None for row in study.rows)
        },
        "kinds": sorted({kind for row in study.rows for kind in row.by_kind}),
        "model": _one(study, "model"),
        "benchmark": _one(study, "benchmark"),
        "effects": {stage: study.effects(stage) for stage in STAGES if len(study.options(stage)) > 1},
    }


_QUESTION = ("kind", "question", "expected", "dense")


def _detailed(study: Study) -> set[int]:
    front = [number for cost in COSTS for number in pareto_front(study.rows, cost)]
    best = sorted(range(len(study.rows)), key=lambda number: -study.rows[number].accuracy)
    return set(list(dict.fromkeys([*front, *best]))[:DETAILED])


def _one(study: Study, section: str) -> str:
    return ", ".join(sorted({str(row.config[section]["name"]) for row in study.rows}))


def _run(study: Study, number: int) -> dict[str, Any]:
    row, difference = study.rows[number], study.differences[number]
    return {
        "key": row.key,
        "stages": row.stages,
        "command": row.command,
        "accuracy": row.accuracy,
        "interval": row.interval,
        "dense": row.dense_accuracy,
        "agreement": row.agreement,
        "by_kind": row.by_kind,
        **{cost: getattr(row, cost) for cost in COSTS},
        "decode_time": row.decode_time,
        "image_tokens": row.image_tokens,
        "difference": None if difference is None else difference.mean,
        "difference_interval": None if difference is None else difference.interval,
        "p": None if difference is None else difference.p_corrected,
    }


def _settings(rows: Sequence[Row]) -> list[str]:
    """What tells runs apart beyond the three strategies."""
    axes = {key: values for key, values in axes_of(rows).items() if key not in STAGES}
    return [
        " ".join(f"{key}={values[number]}" for key, values in axes.items() if values[number])
        for number in range(len(rows))
    ]
