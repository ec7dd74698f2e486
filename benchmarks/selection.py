"""What each vision strategy's own selection costs, beside the prefill that it shortens.

    python -m benchmarks.selection [--keep 64] [--repeats 3] [--only divprune cdpruner] [--out selection.json]

A random LLaVA of 576 image tokens, tower and decoder 1024 wide, batch 1, on the CPU. Selection is the strategy's decisions and
the scores that only it looks at; both sides are counted in processor seconds, so that other work on the machine matters little.
The prefill beside it is the dense one; the strategies run in front of a decoder of one layer, which costs them nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.shapes import Shape, build, prompt
from tokcomp import VISION, Pipeline

SHAPE = Shape("1024 wide", 1024, 2816, 16, 16, 16, 1000, 1024, 6)

FIELDS: dict[str, dict[str, Any]] = {
    "mustdrop": {"threshold": 0.02},
    "hired": {"keep_tokens": None, "keep_ratio": 0.11},
    "prumerge_plus": {"keep_tokens": None},
}
_SCORES = ("attention_rows", "received_attention", "mean_cosine_with")


class Clock:
    """Processor seconds inside the watched functions; nested ones count once."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += time.process_time() - start

        return watched


@torch.inference_mode()
def measured(model: Any, inputs: dict[str, Any], pipeline: Pipeline) -> tuple[float, float]:
    """Processor seconds of one prefill, and those of its selection."""
    clock, modules = Clock(), [module for name, module in sys.modules.items() if name.startswith("tokcomp.runner")]
    with ExitStack() as stack:
        stack.enter_context(pipeline.attach(model))
        if pipeline.vision is not None:
            reducer = type(pipeline.vision)
            stack.enter_context(patch.object(reducer, "reduce", clock.watch(reducer.reduce)))
        for module in modules:
            for name in _SCORES:
                if hasattr(module, name):
                    stack.enter_context(patch.object(module, name, clock.watch(getattr(module, name))))
        start = time.process_time()
        model(**inputs)
        return time.process_time() - start, clock.seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=int, default=64, help="tokens that are kept, where a strategy takes a number")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--only", nargs="+", default=list(VISION), help="strategies to measure")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    inputs = prompt(SHAPE, 1, 64, "cpu", torch.float32)
    model = build(SHAPE, "cpu", torch.float32)
    dense = statistics.median(measured(model, inputs, Pipeline())[0] for _ in range(2))
    model = build(dataclasses.replace(SHAPE, layers=1), "cpu", torch.float32)
    rows = []
    for name in options.only:
        fields: dict[str, Any] = {"keep_tokens": options.keep} if "keep_tokens" in VISION[name].model_fields else {}
        fields = {key: value for key, value in {**fields, **FIELDS.get(name, {})}.items() if value is not None}
        pipeline = Pipeline(vision={"name": name, **fields})
        seconds = statistics.median(measured(model, inputs, pipeline)[1] for _ in range(options.repeats))
        row = {"strategy": name, "fields": fields, "selection_ms": round(1e3 * seconds, 2),
               "share_of_dense": round(seconds / dense, 4)}  # fmt: skip
        rows.append(row)
        sys.stderr.write(f"{name:15s} {row['selection_ms']:8.2f} ms  {100 * row['share_of_dense']:.2f} %\n")
    result = {"dense_ms": round(1e3 * dense, 1), "shape": dataclasses.asdict(SHAPE), "threads": options.threads,
              "torch": torch.__version__, "rows": rows}  # fmt: skip
    sys.stderr.write(f"dense prefill   {result['dense_ms']:8.2f} ms\n")
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
