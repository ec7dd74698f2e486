"""What a sweep takes beside the model: the 27 combinations of three stages on the embedded model, one process, one thread.

    python -m benchmarks.overhead --questions 20 200

Model time is what the model's processor and `generate` take, dense and compressed. The start is all that comes before the
first job: composing and checking the axes, importing, loading the model. The rest is overhead, shared among the jobs:
composing each configuration, making questions, counting tokens and FLOPs, scoring, writing records. All of it is told in
seconds of the clock and of the processor, which other work on the machine does not stretch. Writes overhead.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.records import Log
from tokcomp.experiment import worker
from tokcomp.experiment.load import LoadedModel
from tokcomp.experiment.sweep import sweep

AXES = ("vision=none,tome,mustdrop", "prefill=none,fastv,mustdrop", "cache=none,h2o,mustdrop")
QUIET = ("measure.timing=false", "measure.memory=false", "device=cpu")

Seconds = tuple[float, float]
"""Of the clock, of the processor."""


def now() -> Seconds:
    return time.perf_counter(), time.process_time()


class Stopwatch:
    """Stands in for a function or method, adds up what its calls take and remembers when the first one began."""

    def __init__(self, call: Any) -> None:
        self.call, self.taken, self.first = call, (0.0, 0.0), None

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        return lambda *arguments, **named: self(owner, *arguments, **named)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        begun = now()
        self.first = self.first or begun
        try:
            return self.call(*arguments, **named)
        finally:
            self.taken = tuple(sum + end - start for sum, start, end in zip(self.taken, begun, now(), strict=True))


def measured(questions: int, folder: Path, axes: Sequence[str] = AXES) -> dict[str, Any]:
    """Run the sweep here and now."""
    generate, inputs = Stopwatch(LoadedModel.generate), Stopwatch(LoadedModel.inputs)
    load, first = Stopwatch(worker.load_model), Stopwatch(worker.execute)
    begun = now()
    with (
        mock.patch.object(LoadedModel, "generate", generate),
        mock.patch.object(LoadedModel, "inputs", inputs),
        mock.patch.object(worker, "load_model", load),
        mock.patch.object(worker, "execute", first),
    ):
        outcome = sweep([*axes, *QUIET, f"benchmark.samples={questions}", f"hydra.sweep.dir={folder}"])
    ended = now()
    if outcome.failed or outcome.broken or first.first is None:
        raise RuntimeError(f"the sweep failed: {outcome.failed or outcome.broken}")
    jobs = len(outcome.done)
    row: dict[str, Any] = {"jobs": jobs, "questions": questions}
    for unit, place in (("seconds", 0), ("processor_seconds", 1)):
        whole, model = ended[place] - begun[place], generate.taken[place] + inputs.taken[place]
        start = first.first[place] - begun[place] + load.taken[place]
        row |= {unit: whole, f"model_{unit}": model, f"start_{unit}": start,
                f"overhead_per_job_{unit}": (whole - start - model) / jobs}  # fmt: skip
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, nargs="+", default=[20, 200], help="questions per combination")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    command = f"python -m benchmarks.overhead --questions {' '.join(map(str, options.questions))}"
    log = Log(options.out / "overhead.json", torch.device("cpu"), command)
    for questions in options.questions:
        with tempfile.TemporaryDirectory() as folder:
            log.add(kind="sweep", **measured(questions, Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
