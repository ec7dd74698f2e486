"""One run: the benchmark answered by the dense and by the compressed model, measured and recorded."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from tokcomp.benchmarks.base import Sample
from tokcomp.errors import TokcompError
from tokcomp.experiment.answers import Answer, answer_all
from tokcomp.experiment.config import RunConfig, config_hash
from tokcomp.experiment.environment import describe
from tokcomp.experiment.load import LoadedModel, load_model
from tokcomp.experiment.measuring import peak_of, time_both, times_of
from tokcomp.experiment.result import CompressedSide, Result, SampleRecord, Side
from tokcomp.experiment.scoring import accuracy_of, cache_bytes, flops_of, tokens_of
from tokcomp.pipeline import Pipeline

__all__ = ["RESULT", "Progress", "run", "run_recorded"]

RESULT = "result.json"

Progress = Callable[[str, int | None], Callable[[int], None]]
"""Told that a step begins, with the number of its parts (None: unknown); gives what is told of parts that are done."""


def _silent(step: str, total: int | None) -> Callable[[int], None]:
    return lambda done: None


def run_recorded(config: RunConfig, folder: Path, *, progress: Progress = _silent,
                 load: Callable[[RunConfig], LoadedModel] | None = None) -> Result:  # fmt: skip
    """:func:`run`, with ``result.json`` in ``folder`` whatever happens.

    Args:
        config: the run.
        folder: where the record is written.
        progress: told of every step.
        load: gives the model, for callers that hold one already; None: load it as the configuration says.

    Raises:
        Exception: what went wrong; the record, with status ``failed``, is written first.
    """
    started = datetime.now(UTC)
    begun = time.monotonic()

    def record(**fields: Any) -> Result:
        result = Result(
            config=config.model_dump(mode="json"),
            config_hash=config_hash(config),
            environment=describe(config.device),
            started=started.isoformat(timespec="seconds"),
            seconds=time.monotonic() - begun,
            **fields,
        )
        result.write(folder / RESULT)
        return result

    try:
        return record(status="ok", **run(config, progress=progress, load=load))
    except BaseException as error:  # an interrupted run leaves its record, too
        told = None if isinstance(error, TokcompError) else traceback.format_exc()
        record(status="failed", error=f"{type(error).__name__}: {error}", traceback=told)
        raise


def run(config: RunConfig, *, progress: Progress = _silent,
        load: Callable[[RunConfig], LoadedModel] | None = None) -> dict[str, Any]:  # fmt: skip
    """Answer, score and measure both sides; gives the fields of :class:`Result` that they fill.

    Raises:
        TokcompError: a model that cannot be loaded, a strategy that does not fit it, features that cannot be used.
    """
    loading = progress("model", None)
    loaded = (load or _load)(config)
    loading(1)
    pipeline = config.pipeline
    # A strategy that does not fit the model is refused before the long part.
    with pipeline.attach(loaded.model):
        pass
    torch.manual_seed(config.seed)
    samples = config.benchmark.load()
    dense = _answers(config, loaded, samples, None, progress("dense", len(samples)))
    compressed = _answers(config, loaded, samples, pipeline, progress("compressed", len(samples)))
    sides, timing = _measured(config, loaded, samples[: config.benchmark.batch_size], progress)
    benchmark = config.benchmark
    dense_scores = [benchmark.score(answer.text, sample) for answer, sample in zip(dense, samples, strict=True)]
    scores = [benchmark.score(answer.text, sample) for answer, sample in zip(compressed, samples, strict=True)]
    agreement = fmean(float(a.text == b.text) for a, b in zip(dense, compressed, strict=True))
    return {
        "dense": Side(**_figures(config, loaded, samples, dense, dense_scores), **sides[0]),
        "compressed": CompressedSide(
            **_figures(config, loaded, samples, compressed, scores), **sides[1], agreement=agreement
        ),
        "timing": timing,
        "samples": [
            SampleRecord(
                id=sample.id,
                kind=sample.kind,
                question=sample.question,
                expected=sample.answer,
                dense=a.text,
                compressed=b.text,
                dense_score=a_score,
                compressed_score=b_score,
                equivalent_tokens=b.tokens.equivalent_tokens,
            )
            for sample, a, b, a_score, b_score in zip(samples, dense, compressed, dense_scores, scores, strict=True)
        ],
    }


def _load(config: RunConfig) -> LoadedModel:
    return load_model(config.model, device=config.device, dtype=config.torch_dtype)


def _answers(config: RunConfig, loaded: LoadedModel, samples: Sequence[Sample], pipeline: Pipeline | None,
             progress: Callable[[int], None]) -> list[Answer]:  # fmt: skip
    return answer_all(
        loaded,
        samples,
        batch_size=config.benchmark.batch_size,
        max_new_tokens=config.benchmark.max_new_tokens,
        pipeline=pipeline,
        progress=progress,
    )


def _measured(config: RunConfig, loaded: LoadedModel, batch: Sequence[Sample],
              progress: Progress) -> tuple[tuple[dict[str, Any], dict[str, Any]], Any]:  # fmt: skip
    """What time and memory add to each side, and all the times."""
    pipeline, longest = config.pipeline, config.benchmark.max_new_tokens
    sides: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    timing = None
    if config.measure.timing:
        done = progress("timing", None)
        timing = time_both(loaded, batch, pipeline, max_new_tokens=longest, repeats=config.measure.repeats)
        for side, times in zip(sides, times_of(timing, len(batch)), strict=True):
            side["time"] = times
        done(1)
    if config.measure.memory:
        done = progress("memory", None)
        for side, attached in zip(sides, (None, pipeline), strict=True):
            side["peak_memory"] = peak_of(loaded, batch, attached, max_new_tokens=longest)
        done(1)
    return sides, timing


def _figures(config: RunConfig, loaded: LoadedModel, samples: Sequence[Sample], answers: Sequence[Answer],
             scores: Sequence[float]) -> dict[str, Any]:  # fmt: skip
    shape, tokens = loaded.shape, tokens_of(answers)
    cache = cache_bytes(tokens.cache_lengths, shape, config.torch_dtype)
    return {
        "accuracy": accuracy_of(config.benchmark, samples, scores),
        "tokens": tokens,
        "flops": flops_of(answers, shape),
        "kv_bytes": cache.total,
        "kv_bytes_by_layer": list(cache.by_layer),
    }
