"""Brings a strategy to a budget: finds the value of one of its settings at which a measured figure meets a target.

Thresholds say what leaves, not how much; what a threshold leaves depends on model and images. The figure is measured on a
calibration split, the setting is found by bisection, and the same inputs give the same value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from tokcomp.benchmarks.base import Sample
from tokcomp.errors import ConfigurationError
from tokcomp.experiment.answers import Answer, answer_all
from tokcomp.experiment.load import LoadedModel
from tokcomp.experiment.scoring import cache_bytes, flops_of, tokens_of
from tokcomp.pipeline import Pipeline

__all__ = ["TOLERANCE", "Calibrated", "Measure", "Search", "Target", "UnreachableError", "calibrate", "measured"]

Measure = Literal["equivalent_tokens", "after_vision", "last_layer", "flops", "kv_bytes"]
"""What is brought to a target, mean per sample: vision tokens averaged over the language model's layers, those that the
vision stage leaves, those that enter the last layer, all FLOPs of prompt and answer, bytes of the cache after the prefill."""

TOLERANCE = 0.03
_MOST_STEPS = 30


class UnreachableError(ConfigurationError):
    """No value of the setting meets the target; says what the nearest ones give."""


@dataclass(frozen=True)
class Target:
    """``value`` of ``measure``, met within ``tolerance`` of it."""

    measure: Measure
    value: float
    tolerance: float = TOLERANCE

    def met(self, figure: float) -> bool:
        return abs(figure - self.value) <= self.tolerance * self.value


@dataclass(frozen=True)
class Search:
    """The setting that is looked for.

    Attributes:
        name: of the setting, for messages.
        low, high: the values between which it lies; the figure must not fall between them, or must not rise.
        whole: only whole numbers.
        logarithmic: halve the ratio of the values, not their distance; for thresholds that span orders of magnitude.
    """

    name: str
    low: float
    high: float
    whole: bool = False
    logarithmic: bool = False

    def between(self, low: float, high: float) -> float:
        """A value in the middle."""
        middle = math.sqrt(low * high) if self.logarithmic else (low + high) / 2
        return float(round(middle)) if self.whole else middle

    def exhausted(self, low: float, high: float) -> bool:
        """Whether there is nothing to try between two neighbours."""
        return high - low <= (1 if self.whole else 1e-9 * abs(high))


@dataclass(frozen=True)
class Calibrated:
    """The value that was found, the figure that it gives on the calibration split, and how many values were tried."""

    value: float
    figure: float
    tried: int


def measured(loaded: LoadedModel, samples: Sequence[Sample], pipeline: Pipeline, *, batch_size: int = 20,
             max_new_tokens: int = 1) -> dict[Measure, float]:  # fmt: skip
    """Every figure of a pipeline on some samples, mean per sample; with one new token nothing is decoded.

    Raises:
        CompatibilityError, UnsupportedError: the pipeline does not fit the model.
    """
    answers: list[Answer] = answer_all(
        loaded, samples, batch_size=batch_size, max_new_tokens=max_new_tokens, pipeline=pipeline
    )
    tokens = tokens_of(answers)
    return {
        "equivalent_tokens": tokens.equivalent_tokens,
        "after_vision": tokens.after_vision,
        "last_layer": fmean(answer.tokens.vision_tokens[-1] for answer in answers),
        "flops": flops_of(answers, loaded.shape)["total"],
        "kv_bytes": float(cache_bytes(tokens.cache_lengths, loaded.shape, loaded.dtype).total),
    }


def calibrate(figure_at: Callable[[float], float], search: Search, target: Target) -> Calibrated:
    """The value of a setting that meets a target, by bisection.

    Args:
        figure_at: the figure that a value gives; monotone, and the same at every call.
        search: where the value lies.
        target: what is to be met.

    Raises:
        UnreachableError: the target lies beyond what the ends give, or between two neighbouring values of which neither
            meets it.
    """
    ends = {value: figure_at(value) for value in (search.low, search.high)}
    for value, figure in ends.items():
        if target.met(figure):
            return Calibrated(value, figure, len(ends))
    low, high = search.low, search.high
    rising = ends[high] > ends[low]
    if not min(ends.values()) < target.value < max(ends.values()):
        least, most = sorted(ends.values())
        raise UnreachableError(
            f"{target.measure}={target.value:.4g} cannot be reached by {search.name}: {search.low:g} gives {ends[low]:.4g} "
            f"and {search.high:g} gives {ends[high]:.4g}; choose a target from {least:.4g} to {most:.4g}"
        )
    below, above = (ends[low], ends[high]) if rising else (ends[high], ends[low])
    for tried in range(3, _MOST_STEPS + 3):
        if search.exhausted(low, high):
            break
        value = search.between(low, high)
        figure = figure_at(value)
        if target.met(figure):
            return Calibrated(value, figure, tried)
        if (figure < target.value) == rising:
            low = value
        else:
            high = value
        below, above = (figure, above) if figure < target.value else (below, figure)
    raise UnreachableError(
        f"{target.measure}={target.value:.4g} cannot be met within {target.tolerance:.0%} by {search.name}: it jumps from "
        f"{below:.4g} to {above:.4g} at {search.name}={high:.6g}; choose one of these, or a wider tolerance"
    )
