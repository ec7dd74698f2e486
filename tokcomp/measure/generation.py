"""Time of a ``generate`` run, split into the prefill and the decoding of each token.

The stamps are taken by a logits processor, which ``generate`` calls once per step when the step's logits are there: the
first call ends the prefill (image encoding included), each later one ends a decoding step. On CPU a stamp is one look
at the clock; on a GPU it is one event put on the stream, so that nothing waits for the device.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from tokcomp.measure.timing import Clock, Spread, TimingComparison, clock_for, compare_times, in_turns

__all__ = ["DecodeTimer", "GenerationComparison", "GenerationTiming", "compare_generation", "decode_timer"]


class GenerationTiming(BaseModel):
    """Times of one ``generate`` run, in seconds.

    Attributes:
        prefill: from the call to the first token's logits, image encoding included.
        steps: each decoding step, from one token's logits to the next one's.
        end_to_end: from the call to its return.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefill: float
    steps: tuple[float, ...]
    end_to_end: float

    @property
    def new_tokens(self) -> int:
        """Tokens generated, the prefill's own included."""
        return 1 + len(self.steps)

    @property
    def decode_per_token(self) -> float | None:
        """Median time of a decoding step; None where the prefill's token was the only one."""
        return Spread.of(self.steps).median if self.steps else None


class DecodeTimer:
    """A logits processor that takes a time stamp at every step and changes nothing.

    Pass it to one ``generate`` call inside a ``with`` block, then read :attr:`timing`::

        with DecodeTimer(model.device) as timer:
            model.generate(**inputs, logits_processor=[timer])
        timer.timing.prefill
    """

    def __init__(self, device: torch.device | str = "cpu", clock: Clock | None = None) -> None:
        self._clock = clock or clock_for(device)
        self._stamps: list[Any] = []
        self._end: Any = None

    def __enter__(self) -> DecodeTimer:
        self._end = None
        self._stamps = [self._clock.stamp()]
        return self

    def __exit__(self, *_: object) -> None:
        self._end = self._clock.stamp()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._stamps.append(self._clock.stamp())
        return scores

    @property
    def timing(self) -> GenerationTiming:
        """The run's times.

        Raises:
            RuntimeError: the block has not ended, or ``generate`` was not given this timer.
        """
        if self._end is None or len(self._stamps) < 2:
            raise RuntimeError(
                "no step was timed: use `with DecodeTimer() as timer:` around model.generate(..., "
                "logits_processor=[timer]) and read timer.timing after the block"
            )
        seconds = self._clock.seconds
        between = [seconds(a, b) for a, b in zip(self._stamps, self._stamps[1:], strict=False)]
        return GenerationTiming(
            prefill=between[0], steps=tuple(between[1:]), end_to_end=seconds(self._stamps[0], self._end)
        )


Generate = Callable[[DecodeTimer], Any]
"""One whole ``generate`` run that hands the timer on as ``logits_processor=[timer]``."""


def decode_timer(generate: Generate, *, device: torch.device | str = "cpu",
                 clock: Clock | None = None) -> GenerationTiming:  # fmt: skip
    """Times of one run: ``decode_timer(lambda timer: model.generate(**inputs, logits_processor=[timer]))``.

    Raises:
        TypeError: the callable takes no argument: it could not hand the timer on.
        RuntimeError: it was not handed on.
    """
    if not inspect.signature(generate).parameters:
        raise TypeError(
            "give a callable that takes the timer: lambda timer: model.generate(..., logits_processor=[timer])"
        )
    with DecodeTimer(device, clock) as timer:
        generate(timer)
    return timer.timing


class GenerationComparison(BaseModel):
    """Two sides of ``generate``, timed in turns.

    Attributes:
        prefill: time to the first token's logits.
        decode: time per decoding step, the median of each run; None where a side never decoded.
        end_to_end: the whole call.
        new_tokens: tokens that each run of the dense and of the compressed side generated; where they differ, compare
            ``decode`` and not ``end_to_end``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefill: TimingComparison
    decode: TimingComparison | None
    end_to_end: TimingComparison
    new_tokens: tuple[tuple[int, ...], tuple[int, ...]]


def compare_generation(dense: Generate, compressed: Generate, *, repeats: int = 5, warmup: int = 1,
                       device: torch.device | str = "cpu", clock: Clock | None = None) -> GenerationComparison:  # fmt: skip
    """Time two ways to generate against each other, as :func:`tokcomp.measure.timing.compare` does.

    Args:
        dense, compressed: callables that take the timer and run ``generate`` with it.
        repeats, warmup, device, clock: see :func:`tokcomp.measure.timing.compare`.

    Raises:
        ValueError: fewer than one repeat, or a negative warm-up.
        RuntimeError: a side did not hand the timer on.
    """
    pairs = in_turns(
        lambda: decode_timer(dense, device=device, clock=clock),
        lambda: decode_timer(compressed, device=device, clock=clock),
        repeats=repeats,
        warmup=warmup,
    )
    left, right = [a for a, _ in pairs], [b for _, b in pairs]

    def side_by_side(read: Callable[[GenerationTiming], Any]) -> TimingComparison:
        return compare_times([read(run) for run in left], [read(run) for run in right], warmup=warmup)

    decoded = all(run.steps for run in (*left, *right))
    return GenerationComparison(
        prefill=side_by_side(lambda run: run.prefill),
        decode=side_by_side(lambda run: run.decode_per_token) if decoded else None,
        end_to_end=side_by_side(lambda run: run.end_to_end),
        new_tokens=(tuple(run.new_tokens for run in left), tuple(run.new_tokens for run in right)),
    )
