"""Time and memory of both sides on the benchmark's first batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokcomp.benchmarks.base import Sample
from tokcomp.experiment.load import LoadedModel
from tokcomp.experiment.result import Ratio, Time
from tokcomp.measure.generation import DecodeTimer, GenerationComparison, compare_generation
from tokcomp.measure.memory import model_bytes, peak_memory
from tokcomp.measure.timing import TimingComparison
from tokcomp.pipeline import Pipeline

__all__ = ["peak_of", "time_both", "times_of"]


def time_both(loaded: LoadedModel, batch: Sequence[Sample], pipeline: Pipeline, *, max_new_tokens: int,
              repeats: int) -> GenerationComparison:  # fmt: skip
    """``generate`` on one batch, dense and compressed in turns, in this process."""
    inputs = loaded.inputs([sample.question for sample in batch], [sample.images for sample in batch])

    def dense(timer: DecodeTimer) -> None:
        loaded.generate(inputs, max_new_tokens, timer)

    def compressed(timer: DecodeTimer) -> None:
        # Attaching is done once for many prompts: the clock starts after it.
        with pipeline.attach(loaded.model), timer:
            loaded.generate(inputs, max_new_tokens, timer)

    return compare_generation(dense, compressed, repeats=repeats, device=loaded.device)


def times_of(timing: GenerationComparison, batch_size: int) -> tuple[Time, Time]:
    """The figures of the dense and of the compressed side."""
    decode = timing.decode
    shared = {"batch_size": batch_size, "repeats": timing.prefill.repeats}
    dense = Time(
        prefill=timing.prefill.dense.median,
        decode_per_token=None if decode is None else decode.dense.median,
        end_to_end=timing.end_to_end.dense.median,
        ratio=Ratio(prefill=1.0, decode_per_token=None if decode is None else 1.0, end_to_end=1.0),
        **shared,
    )
    compressed = Time(
        prefill=timing.prefill.compressed.median,
        decode_per_token=None if decode is None else decode.compressed.median,
        end_to_end=timing.end_to_end.compressed.median,
        ratio=Ratio(
            prefill=_share(timing.prefill),
            decode_per_token=None if decode is None else _share(decode),
            end_to_end=_share(timing.end_to_end),
        ),
        **shared,
    )
    return dense, compressed


def _share(comparison: TimingComparison) -> float:
    """Compressed / dense, median of the pairs."""
    return float(np.median([1 / speed_up for speed_up in comparison.ratio.samples]))


def peak_of(
    loaded: LoadedModel, batch: Sequence[Sample], pipeline: Pipeline | None, *, max_new_tokens: int
) -> int | None:
    """Peak memory of ``generate`` on one batch in bytes, weights included; None on devices that cannot tell."""
    if loaded.device.type not in ("cpu", "cuda"):
        return None
    inputs = loaded.inputs([sample.question for sample in batch], [sample.images for sample in batch])

    def call() -> None:
        if pipeline is None:
            loaded.generate(inputs, max_new_tokens)
        else:
            with pipeline.attach(loaded.model):
                loaded.generate(inputs, max_new_tokens)

    return peak_memory(call, device=loaded.device, resident=model_bytes(loaded.model)).peak
