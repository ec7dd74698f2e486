"""Several sides of one comparison, timed in turns in one process, with what they cost in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from tokcomp.measure.timing import Spread, clock_for

__all__ = ["Budget", "Samples", "in_rounds", "wait"]

Side = Callable[[], object]


@dataclass
class Budget:
    """Wall-clock time that a benchmark may take; what no longer fits is left out and named."""

    seconds: float
    start: float = field(default_factory=time.monotonic)
    left_out: list[str] = field(default_factory=list)

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.start)

    def allows(self, what: str, seconds: float) -> bool:
        """Whether ``seconds`` more fit; ``what`` is noted if they do not."""
        if self.left() >= seconds:
            return True
        self.left_out.append(what)
        return False


@dataclass
class Samples:
    """One side's measurements, in seconds: on the device, and until the call returned to the host."""

    device: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)

    def spread(self) -> Spread:
        return Spread.of(self.device)

    def record(self) -> dict[str, float]:
        """Milliseconds, for JSON."""
        spread = self.spread()
        return {
            "ms": 1e3 * spread.median,
            "ms_low": 1e3 * spread.low,
            "ms_high": 1e3 * spread.high,
            "host_ms": 1e3 * Spread.of(self.host).median,
            "repeats": len(self.device),
        }

    def ratio(self, other: Samples) -> Spread:
        """How many times faster than ``other`` this side is, round by round."""
        return Spread.of([theirs / mine for mine, theirs in zip(self.device, other.device, strict=False)])


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_rounds(
    sides: dict[str, Side], device: torch.device, *, repeats: int, warmup: int = 1, seconds: float = 1e9
) -> dict[str, Samples]:
    """Time every side once per round; the order turns from round to round, so that drifts fall on all sides.

    Args:
        sides: calls by name; a call that is a context factory may do its set-up outside of the timing, see :func:`timed`.
        repeats: rounds that count. warmup: rounds before them.
        seconds: no further round begins after this time, but one is always counted.
    """
    begin, clock = time.monotonic(), clock_for(device)
    samples = {name: Samples() for name in sides}
    names = list(sides)
    for number in range(warmup + repeats):
        if number > warmup and time.monotonic() - begin > seconds:
            break
        for name in names[number % len(names) :] + names[: number % len(names)]:
            with _prepared(sides[name]) as call:
                wait(device)
                entered, start = time.perf_counter(), clock.stamp()
                call()
                end, returned = clock.stamp(), time.perf_counter()
                elapsed = clock.seconds(start, end)
            if number >= warmup:
                samples[name].device.append(elapsed)
                samples[name].host.append(returned - entered)
    return samples


@contextmanager
def _prepared(side: Side) -> Iterator[Side]:
    """A side's call; sides with a ``prepared`` context (attaching a pipeline) are prepared outside of the timing."""
    prepare = getattr(side, "prepared", None)
    if prepare is None:
        yield side
    else:
        with prepare() as call:
            yield call
