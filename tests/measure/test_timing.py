"""All but the last tests run on a clock that only moves when it is told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from tests.measure.tiny_models import llava, prompt
from tokcomp.measure.generation import DecodeTimer, GenerationTiming, compare_generation, decode_timer
from tokcomp.measure.timing import CpuClock, Spread, TimingComparison, compare, compare_times


class FakeTime:
    """Seconds that pass only when a piece of work says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []
        self.clock = CpuClock(lambda: self.now)

    def work(self, name: str, seconds: Iterator[float] | float) -> Callable[[], None]:
        def call() -> None:
            self.log.append(name)
            self.now += seconds if isinstance(seconds, float) else next(seconds)

        return call

    def generate(self, prefill: float, steps: list[float], rest: float) -> Callable[[DecodeTimer], None]:
        """What ``generate`` does: the processor is called when a step's logits are there; then some work is left."""

        def call(timer: DecodeTimer) -> None:
            for seconds in (prefill, *steps):
                self.now += seconds
                scores = torch.zeros(1, 4)
                assert timer(torch.zeros(1, 1, dtype=torch.long), scores) is scores
            self.now += rest

        return call


def test_medians_quartiles_and_paired_ratios() -> None:
    time = FakeTime()
    dense = time.work("d", iter([99.0, 4.0, 8.0, 6.0, 10.0]))
    short = time.work("c", iter([99.0, 2.0, 2.0, 2.0, 4.0]))
    result = compare(dense, short, repeats=4, warmup=1, clock=time.clock)
    assert result.dense.samples == (4.0, 8.0, 6.0, 10.0)
    assert (result.dense.median, result.dense.low, result.dense.high) == (7.0, 5.5, 8.5)
    assert result.dense.iqr == 3.0
    assert result.ratio.samples == (2.0, 4.0, 3.0, 2.5)
    assert result.ratio.median == 2.75
    assert (result.repeats, result.warmup) == (4, 1)
    assert result.faster


def test_sides_take_turns_and_the_order_is_swapped() -> None:
    time = FakeTime()
    compare(time.work("d", 1.0), time.work("c", 1.0), repeats=3, warmup=1, clock=time.clock)
    assert "".join(time.log) == "dccddccd"


def test_a_drift_of_the_machine_does_not_look_like_a_gain() -> None:
    """Both sides do the same work while the machine slows down by 10 % per call."""
    time = FakeTime()
    speed = iter([1.1**n for n in range(20)])
    result = compare(time.work("d", speed), time.work("c", speed), repeats=10, warmup=0, clock=time.clock)
    assert result.ratio.low < 1 < result.ratio.high
    assert not result.faster


def test_a_result_can_be_written_and_read() -> None:
    result = compare_times([2.0, 4.0], [1.0, 1.0])
    assert TimingComparison.model_validate_json(result.model_dump_json()) == result


@pytest.mark.parametrize(("repeats", "warmup"), [(0, 1), (1, -1)])
def test_no_repeats_are_refused(repeats: int, warmup: int) -> None:
    with pytest.raises(ValueError, match=f"repeats={repeats}, warmup={warmup}"):
        compare(lambda: None, lambda: None, repeats=repeats, warmup=warmup)


def test_times_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="2 dense and 1 compressed"):
        compare_times([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="longer than the clock's step"):
        compare_times([1.0], [0.0])
    with pytest.raises(ValueError, match="no measurements"):
        Spread.of([])


def test_prefill_and_steps_are_told_apart() -> None:
    time = FakeTime()
    timing = decode_timer(time.generate(prefill=5.0, steps=[1.0, 3.0, 2.0], rest=0.5), clock=time.clock)
    assert timing == GenerationTiming(prefill=5.0, steps=(1.0, 3.0, 2.0), end_to_end=11.5)
    assert timing.new_tokens == 4
    assert timing.decode_per_token == 2.0


def test_a_single_token_has_no_decoding_time() -> None:
    time = FakeTime()
    assert decode_timer(time.generate(5.0, [], 0.0), clock=time.clock).decode_per_token is None
    result = compare_generation(time.generate(5.0, [], 0.1), time.generate(2.5, [], 0.1), clock=time.clock)
    assert result.decode is None
    assert result.prefill.ratio.median == 2.0


def test_generation_is_compared_by_phase() -> None:
    time = FakeTime()
    result = compare_generation(
        time.generate(6.0, [1.0, 1.0], 0.0), time.generate(2.0, [0.5, 0.5, 0.5], 0.0), repeats=2, clock=time.clock
    )
    assert result.decode is not None
    assert (result.prefill.ratio.median, result.decode.ratio.median) == (3.0, 2.0)
    assert result.end_to_end.compressed.median == 3.5
    assert result.new_tokens == ((3, 3), (4, 4))


def test_a_timer_that_was_not_handed_on_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no step was timed"):
        decode_timer(lambda timer: None)
    with pytest.raises(TypeError, match="takes the timer"):
        decode_timer(lambda: None)  # type: ignore[arg-type,misc]
    with DecodeTimer() as timer, pytest.raises(RuntimeError, match="no step was timed"):
        _ = timer.timing


def test_a_real_generate_run_is_timed_and_unchanged() -> None:
    model = llava()
    inputs = {"input_ids": prompt(16, 9), "pixel_values": torch.randn(1, 3, 56, 56)}
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    answers = []
    timing = decode_timer(lambda timer: answers.append(model.generate(**inputs, **options, logits_processor=[timer])))
    assert timing.new_tokens == 5
    assert torch.equal(answers[0], model.generate(**inputs, **options))
    assert 0 < timing.prefill + sum(timing.steps) <= timing.end_to_end


def test_the_default_clock_runs() -> None:
    small, large = torch.randn(8, 8), torch.randn(400, 400)
    result = compare(lambda: [large @ large for _ in range(20)], lambda: small @ small, repeats=3)
    assert result.faster


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_events_time_the_device_and_not_the_launch() -> None:
    large = torch.randn(4096, 4096, device="cuda")
    result = compare(lambda: [large @ large for _ in range(50)], lambda: large @ large, repeats=5, device="cuda")
    assert result.ratio.median > 10
