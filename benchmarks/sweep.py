"""What share of a sweep's wall time the model works: answering, timed runs and memory peaks; the rest is the harness.

    python -m benchmarks.sweep [--samples 100] [--out benchmarks/results]

One process runs the pipelines of a small sweep on the embedded model into a new store, as `tokcomp sweep` does; the time inside
the model's ``generate()`` and forward passes is set beside the whole. Writes sweep.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import GenerationMixin, LlavaForConditionalGeneration

from benchmarks.records import Log
from tokcomp.experiment.sweep import sweep

__all__ = ["measured", "model_clock"]

AXES = ("prefill=none,fastv", "cache=none,h2o")


class Clock:
    """Sums the time inside watched functions; nested ones count once."""

    def __init__(self) -> None:
        self.seconds, self.calls, self._depth = 0.0, 0, 0

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds, self.calls = self.seconds + time.perf_counter() - start, self.calls + 1

        return watched


@contextmanager
def model_clock() -> Iterator[Clock]:
    """While it is open, every ``generate()`` and forward pass of the embedded model is timed."""
    clock = Clock()
    with (
        patch.object(GenerationMixin, "generate", clock.watch(GenerationMixin.generate)),
        patch.object(LlavaForConditionalGeneration, "forward", clock.watch(LlavaForConditionalGeneration.forward)),
    ):
        yield clock


def measured(samples: int, folder: Path, axes: tuple[str, ...] = AXES) -> dict[str, Any]:
    """Run the sweep into ``folder``; its seconds, and the model's among them."""
    with model_clock() as clock:
        start = time.perf_counter()
        outcome = sweep(["model=tiny", "benchmark=scenes", f"benchmark.samples={samples}", *axes,
                         f"hydra.sweep.dir={folder}"])  # fmt: skip
        seconds = time.perf_counter() - start
    if outcome.failed or outcome.broken:
        raise RuntimeError(f"the sweep did not end well: {outcome.broken or outcome.failed}")
    return {"runs": len(outcome.done), "samples": samples, "axes": list(axes), "seconds": seconds,
            "model_seconds": clock.seconds, "calls": clock.calls, "share": clock.seconds / seconds}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100, help="questions of each run")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    command = f"python -m benchmarks.sweep --samples {options.samples} --threads {options.threads}"
    log = Log(options.out / "sweep.json", torch.device("cpu"), command)
    with tempfile.TemporaryDirectory() as folder:
        log.add(kind="sweep", **measured(options.samples, Path(folder) / "store"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
