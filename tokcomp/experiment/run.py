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
from tokcomp.experiment.budgets import meet
from tokcomp.experiment.callbacks import notify
from tokcomp.experiment.code import code_version
from tokcomp.experiment.config import RunConfig, config_hash
from tokcomp.experiment.environment import describe
from tokcomp.experiment.load import LoadedModel, load_model
from tokcomp.experiment.measuring import peak_of, time_both, times_of
from tokcomp.experiment.reference import Reference
from tokcomp.experiment.result import CompressedSide, MetBudget, Result, SampleRecord, Side
from tokcomp.experiment.scoring import accuracy_of, cache_bytes, flops_of, tokens_of
from tokcomp.pipeline import Pipeline

__all__ = ["RESULT", "Progress", "dense_reference", "run", "run_recorded"]

RESULT = "result.json"

Progress = Callable[[str, int | None], Callable[[int], None]]
"""Told that a step begins, with the number of its parts (None: unknown); gives what is told of parts that are done."""


Load = Callable[[RunConfig], LoadedModel]
Ask = Callable[[RunConfig], Sequence[Sample]]
Share = Callable[[Callable[[], Reference]], Reference]
"""Given how to make the dense side, gives it: made now, or by an earlier run."""


def _silent(step: str, total: int | None) -> Callable[[int], None]:
    return lambda done: None


def run_recorded(config: RunConfig, folder: Path, *, progress: Progress = _silent, load: Load | None = None,
                 ask: Ask | None = None, reference: Share | None = None, overrides: Sequence[str] = ()) -> Result:  # fmt: skip
    """:func:`run`, with ``result.json`` in ``folder`` whatever happens.

    Args:
        config: the run.
        folder: where the record is written.
        progress: told of every step.
        load: gives the model, for callers that hold one already; None: load it as the configuration says.
        ask: gives the questions, likewise.
        reference: gives the dense side, for callers that share it between runs; None: make it.
        overrides: the command line that composed ``config``, for the record.

    Raises:
        Exception: what went wrong; the record, with status ``failed``, is written first.
    """
    started = datetime.now(UTC)
    begun = time.monotonic()

    def record(**fields: Any) -> Result:
        result = Result(
            config=config.model_dump(mode="json"),
            config_hash=config_hash(config),
            overrides=list(overrides),
            code_version=code_version(config),
            environment=describe(config.device),
            started=started.isoformat(timespec="seconds"),
            seconds=time.monotonic() - begun,
            **fields,
        )
        result.write(folder / RESULT)
        return result

    try:
        result = record(status="ok", **run(config, progress=progress, load=load, ask=ask, reference=reference))
    except BaseException as error:  # an interrupted run leaves its record, too
        told = None if isinstance(error, TokcompError) else traceback.format_exc()
        record(status="failed", error=f"{type(error).__name__}: {error}", traceback=told)
        raise
    notify(config.callbacks, result, folder)
    return result


def run(config: RunConfig, *, progress: Progress = _silent, load: Load | None = None, ask: Ask | None = None,
        reference: Share | None = None) -> dict[str, Any]:  # fmt: skip
    """Answer, score and measure both sides; gives the fields of :class:`Result` that they fill.

    Raises:
        TokcompError: a model that cannot be loaded, a strategy that does not fit it, features that cannot be used.
    """
    loading = progress("model", None)
    loaded = (load or _load)(config)
    loading(1)
    met = meet(config, loaded)
    if met is not None:
        config = met.config
    pipeline = config.pipeline
    # A strategy that does not fit the model is refused before the long part.
    with pipeline.attach(loaded.model):
        pass
    torch.manual_seed(config.seed)
    samples = (ask or _questions)(config)
    dense = (reference or _made)(lambda: dense_reference(config, loaded, samples, progress))
    torch.manual_seed(config.seed)  # whether questions and reference were made here or before
    compressed = _answers(config, loaded, samples, pipeline, progress("compressed", len(samples)))
    first = samples[: config.benchmark.batch_size]
    timing = None
    times: list[dict[str, Any]] = [{}, {}]
    if config.measure.timing:
        done = progress("timing", None)
        longest, repeats = config.benchmark.max_new_tokens, config.measure.repeats
        timing = time_both(loaded, first, pipeline, max_new_tokens=longest, repeats=repeats)
        times = [{"time": side} for side in times_of(timing, len(first))]
        done(1)
    memory = _memory(config, loaded, first, pipeline, progress)
    scores = [config.benchmark.score(answer.text, sample) for answer, sample in zip(compressed, samples, strict=True)]
    return {
        "dense": dense.side.model_copy(update=times[0]),
        "compressed": CompressedSide(
            **_figures(config, loaded, samples, compressed, scores), **times[1], **memory,
            agreement=fmean(float(text == answer.text) for text, answer in zip(dense.texts, compressed, strict=True)),
        ),
        "timing": timing,
        "budget": None if met is None else MetBudget(stage=met.stage, fields=met.fields, figure=met.figure, target=met.target),
        "samples": _records(samples, dense, compressed, scores),
    }  # fmt: skip


def dense_reference(config: RunConfig, loaded: LoadedModel, samples: Sequence[Sample],
                    progress: Progress = _silent) -> Reference:  # fmt: skip
    """The model's answers without a pipeline, scored and counted."""
    answers = _answers(config, loaded, samples, None, progress("dense", len(samples)))
    scores = [config.benchmark.score(answer.text, sample) for answer, sample in zip(answers, samples, strict=True)]
    memory = _memory(config, loaded, samples[: config.benchmark.batch_size], None, progress)
    side = Side(**_figures(config, loaded, samples, answers, scores), **memory)
    return Reference(texts=[answer.text for answer in answers], scores=scores, side=side)


def _questions(config: RunConfig) -> Sequence[Sample]:
    return config.benchmark.load()


def _made(make: Callable[[], Reference]) -> Reference:
    return make()


def _records(samples: Sequence[Sample], dense: Reference, compressed: Sequence[Answer],
             scores: Sequence[float]) -> list[SampleRecord]:  # fmt: skip
    return [
        SampleRecord(
            id=sample.id,
            kind=sample.kind,
            question=sample.question,
            expected=sample.answer,
            dense=text,
            compressed=answer.text,
            dense_score=dense_score,
            compressed_score=score,
            equivalent_tokens=answer.tokens.equivalent_tokens,
        )
        for sample, text, answer, dense_score, score in zip(
            samples, dense.texts, compressed, dense.scores, scores, strict=True
        )
    ]


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


def _memory(config: RunConfig, loaded: LoadedModel, batch: Sequence[Sample], pipeline: Pipeline | None,
            progress: Progress) -> dict[str, Any]:  # fmt: skip
    if not config.measure.memory:
        return {}
    done = progress("memory", None)
    peak = peak_of(loaded, batch, pipeline, max_new_tokens=config.benchmark.max_new_tokens)
    done(1)
    return {"peak_memory": peak}


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
