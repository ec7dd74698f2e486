"""Paired statistics of runs that answered the same questions: intervals by bootstrap, tests by sign flips, corrected."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Difference", "holm", "paired_differences"]

Floats = NDArray[np.float64]

RESAMPLES = 4000
FLIPS = 9999
TOGETHER = 256  # runs


@dataclass(frozen=True)
class Difference:
    """How much better one run is than what it is compared with, on the same questions.

    Attributes:
        mean: mean difference of the scores.
        interval: 95 % bootstrap interval of the mean (percentiles, questions resampled together).
        p: two-sided sign-flip test of no difference; ``p_corrected``: Holm's correction for all runs of the table.
    """

    mean: float
    interval: tuple[float, float]
    p: float
    p_corrected: float

    @property
    def significant(self) -> bool:
        """At the 5 % level, corrected."""
        return self.p_corrected < 0.05


def paired_differences(scores: Floats, baseline: Floats, *, seed: int = 0) -> list[Difference]:
    """Every run against its baseline.

    The resampled questions and the flipped signs are the same for all runs, so that the work is two matrix products.

    Args:
        scores: ``[runs, questions]``, from 0 to 1.
        baseline: ``[runs, questions]`` or ``[questions]``: what each run is compared with on the same questions.
        seed: of the resamples and flips.

    Raises:
        ValueError: no questions, or shapes that disagree.
    """
    scores = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if scores.shape[1] == 0:
        raise ValueError("no questions to compare on")
    gain = scores - baseline  # [runs, questions]
    questions = gain.shape[1]
    dice = np.random.default_rng(seed)
    picks = dice.multinomial(questions, np.full(questions, 1 / questions), size=RESAMPLES).T.astype(np.float64)
    low, high = np.concatenate(
        [np.percentile(some @ picks / questions, [2.5, 97.5], axis=1) for some in _blocks(gain)], axis=1
    )
    mean = gain.mean(axis=1)
    p = _sign_flips(gain, mean, dice)
    return [
        Difference(float(m), (float(a), float(b)), float(q), float(c))
        for m, a, b, q, c in zip(mean, low, high, p, holm(p), strict=True)
    ]


def _blocks(runs: Floats) -> list[Floats]:
    """A few runs at a time, which bounds the memory that many of them take."""
    return np.array_split(runs, math.ceil(len(runs) / TOGETHER))


def _sign_flips(gain: Floats, mean: Floats, dice: np.random.Generator) -> Floats:
    """Share of random sign patterns whose mean is at least as far from 0 (the observed pattern counted among them)."""
    questions = gain.shape[1]
    reached = np.zeros(gain.shape[0])
    least = _blocks(questions * (np.abs(mean) - 1e-12))
    for start in range(0, FLIPS, 1000):
        rows = min(1000, FLIPS - start)
        signs = (dice.integers(0, 2, size=(rows, questions)).astype(np.float64) * 2 - 1).T
        counts = [
            (np.abs(some @ signs) >= far[:, None]).sum(axis=1) for some, far in zip(_blocks(gain), least, strict=True)
        ]
        reached += np.concatenate(counts)
    return np.asarray((reached + 1) / (FLIPS + 1))


def holm(p: Floats) -> Floats:
    """Holm's step-down correction: p-values that may be compared with one level for all tests together."""
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(steps, 1.0)
    return corrected
