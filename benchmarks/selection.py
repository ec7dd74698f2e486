"""What each vision strategy's own selection costs, beside the prefill that it shortens.

    python -m benchmarks.selection [--keep 64] [--repeats 3] [--out benchmarks/results/selection.json]

A random LLaVA of 576 image tokens, tower and decoder 1024 wide, batch 1, on the CPU. Selection is the strategy's decision and
the attention scores that only it looks at; both sides are counted in processor seconds, so that other work on the machine does
not matter. The prefill is the dense one.
"""

from __future__ import annotations

import argparse
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

from benchmarks.prefill import IMAGE, build
from tokcomp import VISION, Pipeline

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
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--keep", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--only", nargs="*", default=list(VISION), help="strategies to measure")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "selection.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = build(options.layers, 1024, 8, 1024)
    text = torch.randint(0, IMAGE, (64,), generator=torch.Generator().manual_seed(0))
    ids = torch.cat([text[:32], torch.full((576,), IMAGE), text[32:]])[None]
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 336, 336), "use_cache": True}
    dense = statistics.median(measured(model, inputs, Pipeline())[0] for _ in range(options.repeats))
    rows = []
    for name in options.only:
        cls = VISION[name]
        fields: dict[str, Any] = {"keep_tokens": options.keep} if "keep_tokens" in cls.model_fields else {}
        fields = {key: value for key, value in {**fields, **FIELDS.get(name, {})}.items() if value is not None}
        spent = [measured(model, inputs, Pipeline(vision={"name": name, **fields})) for _ in range(options.repeats)]
        seconds = statistics.median(selection for _, selection in spent)
        row = {"strategy": name, "fields": fields, "selection_ms": round(1e3 * seconds, 2),
               "share_of_dense": round(seconds / dense, 4)}  # fmt: skip
        rows.append(row)
        sys.stderr.write(f"{name:15s} {row['selection_ms']:8.2f} ms  {100 * row['share_of_dense']:.2f} %\n")
    result = {"dense_ms": round(1e3 * dense, 1), "layers": options.layers, "threads": options.threads, "keep": options.keep,
              "torch": torch.__version__, "rows": rows}  # fmt: skip
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
