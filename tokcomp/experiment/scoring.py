"""From answers to the figures of one side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

import torch

from tokcomp.benchmarks.base import Benchmark, Sample
from tokcomp.experiment.answers import Answer
from tokcomp.experiment.result import Accuracy, Tokens
from tokcomp.measure.flops import count_all
from tokcomp.measure.intervals import wilson
from tokcomp.measure.kv import KVBytes, kv_bytes
from tokcomp.measure.shape import ModelShape

__all__ = ["accuracy_of", "cache_bytes", "flops_of", "tokens_of"]


def accuracy_of(benchmark: Benchmark, samples: Sequence[Sample], scores: Sequence[float]) -> Accuracy:
    """Accuracy in all and by kind. Where every kind stands apart from the headline, all of them make it."""
    kinds: dict[str, list[float]] = defaultdict(list)
    for sample, score in zip(samples, scores, strict=True):
        kinds[sample.kind].append(score)
    headline = [score for kind, group in kinds.items() if benchmark.headline(kind) for score in group] or list(scores)
    return Accuracy(
        overall=fmean(headline),
        interval=_interval(headline),
        samples=len(samples),
        headline_samples=len(headline),
        by_kind={kind: fmean(group) for kind, group in kinds.items()},
        interval_by_kind={kind: _interval(group) for kind, group in kinds.items()},
        samples_by_kind={kind: len(group) for kind, group in kinds.items()},
    )


def _interval(scores: Sequence[float]) -> tuple[float, float]:
    # Scores between 0 and 1 spread less than right-or-wrong ones of the same mean, so this errs on the wide side.
    interval = wilson(round(sum(scores)), len(scores))
    return interval.low, interval.high


def _by_layer(rows: Iterable[Sequence[float]]) -> list[float]:
    return [fmean(column) for column in zip(*rows, strict=True)]


def tokens_of(answers: Sequence[Answer]) -> Tokens:
    """Means over the samples."""
    all_tokens = [answer.tokens for answer in answers]
    return Tokens(
        image_tokens=fmean(tokens.image_tokens for tokens in all_tokens),
        after_vision=fmean(tokens.after_vision for tokens in all_tokens),
        vision_tokens=_by_layer(tokens.vision_tokens for tokens in all_tokens),
        sequence_tokens=_by_layer(tokens.sequence_tokens for tokens in all_tokens),
        equivalent_tokens=fmean(tokens.equivalent_tokens for tokens in all_tokens),
        cache_lengths=_by_layer(tokens.cache_lengths for tokens in all_tokens),
        new_tokens=fmean(answer.tokens.new_tokens for answer in answers),
    )


def flops_of(answers: Sequence[Answer], shape: ModelShape) -> dict[str, float]:
    """FLOPs by part, mean per sample. Padding of a batch is not counted."""
    total = count_all(shape, (answer.work for answer in answers))
    return {part: flops / len(answers) for part, flops in total.by_part().items()}


def cache_bytes(lengths: Sequence[float], shape: ModelShape, dtype: torch.dtype) -> KVBytes:
    """Bytes of the cache that holds so many entries in each layer."""
    return kv_bytes(lengths, kv_heads=shape.kv_heads, head_dim=shape.head_dim, dtype=dtype)
