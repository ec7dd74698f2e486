"""What is timed: a prefill or an answer of one model, plain or with a pipeline attached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from benchmarks.rounds import Samples
from tokcomp import Pipeline
from tokcomp.measure.generation import DecodeTimer, GenerationTiming
from tokcomp.measure.timing import Spread
from tokcomp.runner.arguments import cache_in, cache_name

__all__ = ["Answer", "Prefill", "Step", "answer_record"]


class Prefill:
    """The forward pass of a prompt, image encoding and one row of logits included; attaching is done before the clock."""

    def __init__(self, model: Any, inputs: dict[str, Tensor], pipeline: Pipeline | None = None) -> None:
        self.model, self.inputs, self.pipeline = model, inputs, pipeline

    def forward(self) -> Any:
        return self.model(**self.inputs, use_cache=True, logits_to_keep=1)

    def __call__(self) -> Any:
        with torch.inference_mode():
            return self.forward()

    @contextmanager
    def prepared(self) -> Iterator[Callable[[], Any]]:
        with nullcontext() if self.pipeline is None else self.pipeline.attach(self.model) as self.trace:
            yield self


class Answer(Prefill):
    """``generate()``: the prompt and ``new_tokens`` tokens, greedily; keeps the times of its steps."""

    def __init__(
        self, model: Any, inputs: dict[str, Tensor], pipeline: Pipeline | None = None, *, new_tokens: int
    ) -> None:
        super().__init__(model, inputs, pipeline)
        self.new_tokens = new_tokens
        self.timings: list[GenerationTiming] = []

    def __call__(self) -> Any:
        with DecodeTimer(self.inputs["input_ids"].device) as timer:
            output = self.model.generate(
                **self.inputs, max_new_tokens=self.new_tokens, do_sample=False, logits_processor=[timer],
                return_dict_in_generate=True,
            )  # fmt: skip
        self.timings.append(timer.timing)
        return output


class Step(Prefill):
    """One decoding step behind a prompt, the cache growing by one entry from call to call."""

    def __init__(self, model: Any, prefilled: Any) -> None:
        super().__init__(model, {"input_ids": prefilled.logits[:, -1:].argmax(-1)})
        self.cache = {cache_name(model): cache_in(prefilled)}

    def forward(self) -> Any:
        return self.model(**self.inputs, **self.cache, use_cache=True)


def answer_record(side: Answer, samples: Samples) -> dict[str, float]:
    """Time to first token, per further token and end to end, in milliseconds; medians of the counted rounds."""
    counted = side.timings[-len(samples.device) :]
    per_token = [timing.decode_per_token for timing in counted if timing.decode_per_token is not None]
    return {
        "first_token_ms": 1e3 * Spread.of([timing.prefill for timing in counted]).median,
        "decode_ms": 1e3 * Spread.of(per_token).median,
        "decode_ms_low": 1e3 * Spread.of(per_token).low,
        "decode_ms_high": 1e3 * Spread.of(per_token).high,
        "end_to_end_ms": 1e3 * Spread.of([timing.end_to_end for timing in counted]).median,
        "new_tokens": side.new_tokens,
        "repeats": len(counted),
    }
