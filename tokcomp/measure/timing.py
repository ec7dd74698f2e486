"""Time of two ways to do the same work, dense against compressed, in one process.

The two sides take turns, so that what the machine does meanwhile (clock speeds, other processes) falls on both; the
order changes with every repeat. Medians and quartiles are reported, not means: a timing's errors are one-sided.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

__all__ = ["Clock", "CpuClock", "CudaClock", "Spread", "TimingComparison", "clock_for", "compare", "compare_times"]


class Clock(Protocol):
    """Takes time stamps; the difference of two is read later, so that taking one never waits for the device."""

    def stamp(self) -> Any: ...
    def seconds(self, start: Any, end: Any) -> float: ...


class CpuClock:
    """Wall-clock time."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now

    def stamp(self) -> float:
        return self._now()

    def seconds(self, start: float, end: float) -> float:
        return end - start


class CudaClock:
    """Time on the device's current stream, by CUDA events: exact, and without a synchronisation between two stamps.

    Time in which the stream waits for the host (Python, launches) lies between two events and is counted.
    """

    def __init__(self, device: torch.device | str = "cuda") -> None:
        self._device = torch.device(device)

    def stamp(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1000


def clock_for(device: torch.device | str) -> Clock:
    """The clock of a device: CUDA events on a GPU, ``time.perf_counter`` elsewhere."""
    return CudaClock(device) if torch.device(device).type == "cuda" else CpuClock()


class Spread(BaseModel):
    """Median and quartiles of several measurements.

    Attributes:
        median: the value to quote.
        low, high: first and third quartile (linear interpolation).
        samples: the measurements in the order in which they were taken.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    median: float
    low: float
    high: float
    samples: tuple[float, ...]

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Raises ValueError where there is nothing to summarise."""
        if not samples:
            raise ValueError("no measurements were taken")
        low, median, high = np.percentile(np.asarray(samples, dtype=np.float64), (25, 50, 75))
        return cls(median=float(median), low=float(low), high=float(high), samples=tuple(samples))

    @property
    def iqr(self) -> float:
        """Interquartile range."""
        return self.high - self.low


class TimingComparison(BaseModel):
    """Two sides timed in turns.

    Attributes:
        dense, compressed: seconds.
        ratio: dense / compressed, pair by pair: above 1 the compressed side is faster. Its quartiles say how sure that
            is: where they lie on both sides of 1, nothing was shown.
        repeats, warmup: pairs that were timed, and pairs that ran before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dense: Spread
    compressed: Spread
    ratio: Spread
    repeats: int
    warmup: int

    @property
    def faster(self) -> bool:
        """Whether the compressed side is faster in at least three quarters of the pairs."""
        return self.ratio.low > 1


def compare(dense: Callable[[], Any], compressed: Callable[[], Any], *, repeats: int = 5, warmup: int = 1,
            device: torch.device | str = "cpu", clock: Clock | None = None) -> TimingComparison:  # fmt: skip
    """Time two calls against each other.

    Args:
        dense, compressed: the two sides; each call does the whole work once. What either needs to set up (attaching a
            pipeline) is timed if it is done inside the call.
        repeats: pairs to time; 5 is the least for quartiles that mean something.
        warmup: pairs to run first, untimed (caches, allocator, kernel selection).
        device: whose time is taken.
        clock: another source of time stamps.

    Raises:
        ValueError: fewer than one repeat, or a negative warm-up.
    """
    clock = clock or clock_for(device)

    def timed(call: Callable[[], Any]) -> float:
        start = clock.stamp()
        call()
        return clock.seconds(start, clock.stamp())

    pairs = in_turns(lambda: timed(dense), lambda: timed(compressed), repeats=repeats, warmup=warmup)
    return compare_times([a for a, _ in pairs], [b for _, b in pairs], warmup=warmup)


def in_turns(dense: Callable[[], Any], compressed: Callable[[], Any], *, repeats: int,
             warmup: int) -> list[tuple[Any, Any]]:  # fmt: skip
    """Results of both calls, pair by pair, the order swapped from one pair to the next; warm-up pairs are dropped."""
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats={repeats}, warmup={warmup}: give at least one repeat and no negative warm-up")
    pairs = []
    for number in range(warmup + repeats):
        if number % 2 == 0:
            first = dense()
            pairs.append((first, compressed()))
        else:
            second = compressed()
            pairs.append((dense(), second))
    return pairs[warmup:]


def compare_times(dense: Sequence[float], compressed: Sequence[float], *, warmup: int = 0) -> TimingComparison:
    """The comparison of times that were taken in pairs, in seconds.

    Raises:
        ValueError: the sides have different numbers of times, none at all, or a compressed time of zero.
    """
    if len(dense) != len(compressed) or not all(compressed):
        raise ValueError(
            f"{len(dense)} dense and {len(compressed)} compressed times: give pairs, each longer than the clock's step"
        )
    return TimingComparison(
        dense=Spread.of(dense),
        compressed=Spread.of(compressed),
        ratio=Spread.of([a / b for a, b in zip(dense, compressed, strict=True)]),
        repeats=len(dense),
        warmup=warmup,
    )
