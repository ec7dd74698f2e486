"""Runs one cell: the questions, the pipeline made for each batch, the answers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch

from benchmarks.depth.cells import Cell
from benchmarks.depth.probes import Leave, RankedFilter, RankedPolicy, RankedReducer, worth
from tokcomp.benchmarks.scenes import same_words
from tokcomp.embedded.hard.dataset import HardQuestion, hard_question_set
from tokcomp.experiment.config import ModelConfig
from tokcomp.experiment.load import LoadedModel, load_model
from tokcomp.pipeline import Pipeline

BATCH = 40
NEW_TOKENS = 32


@lru_cache(maxsize=1)
def loaded(device: str) -> LoadedModel:
    """The hard scenes' model."""
    return load_model(ModelConfig(name="tiny-hard"), device=device, dtype=torch.float32)


@lru_cache(maxsize=4)
def questions(number: int, kinds: tuple[str, ...]) -> list[HardQuestion]:
    """The first questions of the benchmark."""
    return hard_question_set(number, kinds=kinds or None)


def run_cell(cell: Cell, number: int, device: str) -> dict[str, Any]:
    """The cell's record: its settings, and per question whether the answer is right."""
    items = questions(number, cell.kinds)
    started = time.monotonic()
    # Short answers stand together, so that they need not wait for long ones; a batch gives what its samples give alone.
    order = sorted(range(len(items)), key=lambda index: len(items[index].answer))
    said = [""] * len(items)
    for first in range(0, len(items), BATCH):
        part = order[first : first + BATCH]
        for index, text in zip(part, _answers(cell, [items[index] for index in part], loaded(device)), strict=True):
            said[index] = text
    right = [same_words(text, item.answer) for text, item in zip(said, items, strict=True)]
    return {
        **cell.record(),
        "id": cell.id,
        "samples": number,
        "seconds": round(time.monotonic() - started, 1),
        "device": device,
        "right": "".join("1" if hit else "0" for hit in right),
        "asked": [item.kind for item in items],
    }


def _answers(cell: Cell, items: Sequence[HardQuestion], model: LoadedModel) -> list[str]:
    if cell.strategy == "no image":
        return _blind(items, model)
    inputs = model.inputs([item.question for item in items], [(item.image,) for item in items])
    pipeline = _pipeline(cell, items)
    with nullcontext() if pipeline is None else pipeline.attach(model.model):
        return model.texts(model.generate(inputs, NEW_TOKENS))


def _blind(items: Sequence[HardQuestion], model: LoadedModel) -> list[str]:
    """Answers to the questions alone."""
    texts = [model.prompt(item.question).replace("<image>", "") for item in items]
    inputs = model.processor.tokenizer(texts, padding=True, return_tensors="pt").to(model.device)
    return model.texts(model.generate(dict(inputs), NEW_TOKENS))


def _pipeline(cell: Cell, items: Sequence[HardQuestion]) -> Pipeline | None:
    stages = {"vision": cell.vision, "prefill": cell.prefill, "cache": cell.cache}
    made = {stage: _strategy(stage, fields, items) for stage, fields in stages.items() if fields is not None}
    return Pipeline(**made) if made else None


def _strategy(stage: str, fields: Mapping[str, Any], items: Sequence[HardQuestion]) -> Any:
    """A registered strategy's fields as they are, or a probe that is told of the scenes of this batch."""
    name, rest = fields["name"], {key: value for key, value in fields.items() if key != "name"}
    if name == "leave":
        return Leave(**rest)
    if name not in ("oracle", "no objects"):
        return dict(fields)
    probes = {"vision": RankedReducer, "prefill": RankedFilter, "cache": RankedPolicy}
    return probes[stage](ranks=tuple(worth(item.owner, objects=name == "oracle") for item in items), **rest)
