"""From scores to accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from PIL import Image

from tokcomp.benchmarks.base import Benchmark, Sample
from tokcomp.experiment.scoring import accuracy_of, cache_bytes
from tokcomp.measure.intervals import wilson
from tokcomp.measure.shape import named_shape


class Quiz(Benchmark):
    """Kinds whose name begins with an x stand apart."""

    def load(self) -> Sequence[Sample]:
        return []

    def score(self, prediction: str, sample: Sample) -> float:
        return 0.0

    def headline(self, kind: str) -> bool:
        return not kind.startswith("x")


def samples(*kinds: str) -> list[Sample]:
    return [Sample(str(n), (Image.new("RGB", (2, 2)),), "?", "yes", kind) for n, kind in enumerate(kinds)]


def test_kinds_apart_from_the_headline_are_reported_by_kind_only() -> None:
    accuracy = accuracy_of(Quiz(), samples("a", "a", "b", "x", "x"), [1, 0, 1, 0, 0])
    assert accuracy.overall == pytest.approx(2 / 3)
    assert accuracy.interval == tuple(wilson(2, 3))
    assert (accuracy.samples, accuracy.headline_samples) == (5, 3)
    assert accuracy.by_kind == {"a": 0.5, "b": 1.0, "x": 0.0}
    assert accuracy.samples_by_kind == {"a": 2, "b": 1, "x": 2}
    assert accuracy.interval_by_kind["x"] == tuple(wilson(0, 2))


def test_where_all_kinds_stand_apart_all_of_them_count() -> None:
    accuracy = accuracy_of(Quiz(), samples("x", "xx"), [1, 0])
    assert (accuracy.overall, accuracy.headline_samples) == (0.5, 2)


def test_scores_between_right_and_wrong_have_an_interval_too() -> None:
    accuracy = accuracy_of(Quiz(), samples("a", "a"), [0.5, 0.6])
    assert accuracy.overall == pytest.approx(0.55)
    assert accuracy.interval == tuple(wilson(1, 2))


def test_bytes_of_a_cache() -> None:
    import torch

    shape = named_shape("llava-1.5-7b")  # 32 layers, 32 heads of 128
    assert cache_bytes([640] * 32, shape, torch.float16).total == 2 * 2 * 640 * 4096 * 32
