"""Known values: Newcombe, Statistics in Medicine 17 (1998), table I, method 3 (score, no continuity correction)."""

from __future__ import annotations

import pytest

from tokcomp.measure.intervals import wilson


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_published_values(correct: int, total: int, low: float, high: float) -> None:
    interval = wilson(correct, total)
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


def test_it_is_symmetric_and_stays_within_zero_and_one() -> None:
    for total in (1, 3, 50):
        for correct in range(total + 1):
            here, there = wilson(correct, total), wilson(total - correct, total)
            assert here.low == pytest.approx(1 - there.high)
            assert 0 <= here.low <= correct / total <= here.high <= 1
    assert wilson(7, 7).high == 1.0
    assert wilson(7, 7).low < 1


def test_more_confidence_is_wider_and_more_trials_are_narrower() -> None:
    def width(interval: tuple[float, float]) -> float:
        return interval[1] - interval[0]

    assert width(wilson(30, 60, confidence=0.99)) > width(wilson(30, 60)) > width(wilson(300, 600))


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (5, 4), (-1, 4)])
def test_what_is_no_share_is_refused(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"{correct} of {total} is no share"):
        wilson(correct, total)


def test_what_is_no_probability_is_refused() -> None:
    with pytest.raises(ValueError, match="confidence=95"):
        wilson(1, 2, confidence=95)
