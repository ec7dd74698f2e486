"""How sure a measured share is."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

__all__ = ["Interval", "wilson"]


class Interval(NamedTuple):
    """Lower and upper end of an interval, both within [0, 1]."""

    low: float
    high: float


def wilson(correct: int, total: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a share (Wilson 1927, without continuity correction).

    Unlike ``p ± 1.96 sqrt(p (1 - p) / n)`` it stays within [0, 1] and has a width where all answers are right.

    Args:
        correct: successes.
        total: trials, at least 1.
        confidence: probability that the interval covers the true share, between 0 and 1.

    Raises:
        ValueError: there are no trials, more successes than trials, or the confidence is no probability.
    """
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"{correct} of {total} is no share: give at least one trial and 0 to {total} successes")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} is no probability: give a number between 0 and 1, such as 0.95")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = correct / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    # The ends are exact where no answer, or every answer, is right; rounding must not push them past 0 or 1.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == total else min(1.0, centre + half)
    return Interval(low, high)
