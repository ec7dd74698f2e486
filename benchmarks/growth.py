"""How time and memory grow with image tokens, with the batch and with the depth, beside the dense model's own growth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from benchmarks.cells import Cell, release
from benchmarks.pipelines import mustdrop
from benchmarks.plan import Plan
from benchmarks.records import Log
from benchmarks.shapes import Shape, build, prompt
from tokcomp import Pipeline

__all__ = ["grow_with_batch", "grow_with_layers", "grow_with_tokens"]


def _pipelines(model: Any, shape: Shape, text: int) -> dict[str, Pipeline]:
    pixels = prompt(shape, 1, text, model.device, model.dtype)["pixel_values"]
    return {
        "fastv (K=2, half)": Pipeline(prefill="fastv"),
        "mustdrop (three stages)": Pipeline(**mustdrop(model, pixels)),
        "h2o": Pipeline(cache="h2o"),
    }


def _measure(model: Any, shape: Shape, batch: int, text: int, log: Log, seconds: float, axis: str) -> None:
    release(model.device)
    cell = Cell(model, shape, prompt(shape, batch, text, model.device, model.dtype), log)
    cell.about["axis"] = axis
    pipelines = _pipelines(model, replace(shape, tiles=1), text)
    cell.prefill(pipelines, repeats=3, seconds=seconds, warmup=0, kind="growth")
    cell.memory(pipelines)


def grow_with_tokens(
    plan: Plan, model: Any, shape: Shape, tiles: tuple[int, ...], log: Log, *, text: int, seconds: float
) -> None:
    """More and more tiles of an image."""
    for count in tiles:
        plan.step(f"growth {count * shape.tile_tokens} tokens", seconds, lambda count=count: _measure(
            model, replace(shape, tiles=count), 1, text, log, seconds / 3, "image tokens"))  # fmt: skip


def grow_with_batch(
    plan: Plan, model: Any, shape: Shape, batches: tuple[int, ...], log: Log, *, text: int, seconds: float
) -> None:
    """More and more samples."""
    for batch in batches:
        plan.step(f"growth batch {batch}", seconds, lambda batch=batch: _measure(
            model, shape, batch, text, log, seconds / 3, "batch"))  # fmt: skip


def grow_with_layers(plan: Plan, shape: Shape, depths: tuple[int, ...], log: Log, device: torch.device, dtype: torch.dtype,
                     *, text: int, seconds: float) -> None:  # fmt: skip
    """Deeper and deeper language models, of more than the two layers that FastV leaves whole."""
    for depth in depths:
        deeper = replace(shape, layers=depth)
        plan.step(f"growth {depth} layers", seconds, lambda deeper=deeper: _measure(
            build(deeper, device, dtype), deeper, 1, text, log, seconds / 3, "layers"))  # fmt: skip
