"""Asks a model the questions of a benchmark and keeps, for every answer, how many tokens it took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from tokcomp.benchmarks.base import Sample
from tokcomp.experiment.load import LoadedModel
from tokcomp.experiment.tokens import SampleTokens, dense_sample, recorded_samples
from tokcomp.measure.shape import ModelShape
from tokcomp.measure.workload import Workload
from tokcomp.pipeline import Pipeline
from tokcomp.runner.trace import Trace

__all__ = ["Answer", "answer_all", "batches_of"]


@dataclass(frozen=True)
class Answer:
    """What the model said, the tokens that it took and the work that they made."""

    text: str
    tokens: SampleTokens
    work: Workload


def batches_of(samples: Sequence[Sample], size: int) -> list[Sequence[Sample]]:
    """Consecutive groups of at most ``size``."""
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def answer_all(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    *,
    batch_size: int,
    max_new_tokens: int,
    pipeline: Pipeline | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Answer]:
    """Greedy answers to all samples, in their order.

    Args:
        loaded: the model.
        samples: the questions; each has at least one image.
        batch_size: prompts per forward pass.
        max_new_tokens: longest answer.
        pipeline: what is attached meanwhile; None: the model as it is.
        progress: told how many more answers there are.

    Raises:
        CompatibilityError, UnsupportedError: the pipeline does not fit the model.
    """
    shape, answers = loaded.shape, []
    with nullcontext(None) if pipeline is None else pipeline.attach(loaded.model) as trace:
        for batch in batches_of(samples, batch_size):
            answers += _answer(loaded, batch, max_new_tokens, shape, pipeline, trace)
            progress(len(batch))
    return answers


def _answer(loaded: LoadedModel, batch: Sequence[Sample], max_new_tokens: int, shape: ModelShape,
            pipeline: Pipeline | None, trace: Trace | None) -> list[Answer]:  # fmt: skip
    inputs = loaded.inputs([sample.question for sample in batch], [sample.images for sample in batch])
    ids = loaded.generate(inputs, max_new_tokens)
    news = loaded.lengths(ids)
    if pipeline is None or trace is None:
        counted = _dense(loaded, inputs, shape, [len(sample.images) for sample in batch], news)
    else:
        rows, passes = _rows_after_image(inputs, loaded), ids.shape[1] - 1
        counted = recorded_samples(
            trace.last, shape=shape, pipeline=pipeline, passes=passes, new_tokens=news, text_rows=rows
        )
        trace.clear()
    return [Answer(text, *taken) for text, taken in zip(loaded.texts(ids), counted, strict=True)]


def _dense(loaded: LoadedModel, inputs: dict[str, Any], shape: ModelShape, images: Sequence[int],
           news: Sequence[int]) -> list[tuple[SampleTokens, Workload]]:  # fmt: skip
    vision = (inputs["input_ids"] == loaded.model.config.image_token_id).sum(dim=1).tolist()
    if not all(_of_one_size(shape, placeholders, count) for placeholders, count in zip(vision, images, strict=True)):
        return _dense_as_recorded(loaded, inputs, shape, news)
    prompts = inputs["attention_mask"].sum(dim=1).tolist()
    return [
        dense_sample(shape, image_tokens=placeholders, prompt_tokens=prompt, images=count, new_tokens=new)
        for placeholders, prompt, count, new in zip(vision, prompts, images, news, strict=True)
    ]


def _of_one_size(shape: ModelShape, placeholders: int, images: int) -> bool:
    """Whether the tower's rows follow from the number of placeholders: as many rows as images, of one size."""
    tower = shape.tower
    if tower is None or tower.grid is None:
        return images == 1
    row = tower.grid[0] * tower.grid[1] // shape.merge + (tower.prefix if shape.feature_prefix else 0)
    return placeholders == images * row


def _dense_as_recorded(loaded: LoadedModel, inputs: dict[str, Any], shape: ModelShape,
                       news: Sequence[int]) -> list[tuple[SampleTokens, Workload]]:  # fmt: skip
    """Tiles of large images, and images of several sizes: one more prefill, of which an empty pipeline records the rows."""
    nothing = Pipeline()
    with nothing.attach(loaded.model) as trace:
        loaded.generate(inputs, 1)
    rows = _rows_after_image(inputs, loaded)
    return recorded_samples(trace.last, shape=shape, pipeline=nothing, passes=0, new_tokens=news, text_rows=rows)


def _rows_after_image(inputs: dict[str, Any], loaded: LoadedModel) -> list[int]:
    """Text tokens after the last image of each sample; prompts are padded on the left."""
    vision = inputs["input_ids"] == loaded.model.config.image_token_id
    length = vision.shape[1]
    place = torch.arange(length, device=vision.device)
    last = torch.where(vision, place, -1).amax(dim=1)
    return (length - 1 - last).tolist()
