"""The picture of every run of a study: what each stage kept of the benchmark's first image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokcomp.errors import CompatibilityError, UnsupportedError
from tokcomp.experiment.config import RunConfig
from tokcomp.experiment.load import LoadedModel, load_model
from tokcomp.report.rows import Row
from tokcomp.report.view import render

__all__ = ["draw_pictures"]


def draw_pictures(rows: Sequence[Row], folder: Path) -> dict[str, Path]:
    """Draw what each run's pipeline keeps of the first question's image; pictures that are there are left alone.

    A model that does not see an image as one grid of patches has no such picture, and its runs are left out.

    Raises:
        ConfigurationError: the model of a run cannot be loaded.
    """
    drawn: dict[str, Path] = {}
    held: dict[str, LoadedModel] = {}
    for row in rows:
        out = folder / f"{row.key}.png"
        config = RunConfig.resolve(_settled(row))
        if not out.is_file():
            name = f"{config.model.model_dump_json()} {config.device} {config.dtype}"
            if name not in held:
                held.clear()  # one model at a time
                held[name] = load_model(config.model, device=config.device, dtype=config.torch_dtype)
            first = config.benchmark.model_copy(update={"samples": 1}).load()[0]
            longest = config.benchmark.max_new_tokens
            try:
                render(first.images[0], first.question, config.pipeline.spec(), held[name], out, max_new_tokens=longest)
            except (UnsupportedError, CompatibilityError):
                continue
        drawn[row.key] = out
    return drawn


def _settled(row: Row) -> dict[str, Any]:
    """The configuration of what ran: that of the record, with the fields that brought it to its budget."""
    if row.settled is None:
        return row.config
    stage = row.settled["stage"]
    return {**row.config, stage: {**row.config[stage], **row.settled["fields"]}}
