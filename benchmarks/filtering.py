"""What share of its own prefill each vision and prefill strategy spends on selecting, by the clock and with what the runner adds.

    python -m benchmarks.filtering [--width 1024] [--layers 16] [--tower-layers 12] [--repeats 3] [--only dart]

A random LLaVA with 576 image tokens, batch 1, each strategy at a quarter of them. Counted as selection: every decision, every
attention score made for it, and in the language model the projections ahead and the gathering and merging as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from benchmarks.prefill import IMAGE, build

from benchmarks.selection_time import selection_clock
from tokcomp import Pipeline
from tokcomp.experiment.library import RULES, Direct, Without
from tokcomp.measure.timing import clock_for
from tokcomp.registry import REGISTRIES
from tokcomp.runner.filtering import Filtering

SEARCHED: dict[tuple[str, str], dict[str, Any]] = {
    ("vision", "pool"): {},
    ("vision", "pitome"): {},
    ("vision", "evit"): {},
    ("vision", "mustdrop"): {"threshold": 0.02, "key_ratio": 0.14},
    ("prefill", "mustdrop"): {"global_threshold": 1.0, "individual_threshold": 0.002},
    ("prefill", "sparsevlm"): {},
}
"""Settings where a quarter would have to be calibrated; on random weights thresholds mean nothing."""


def settings(stage: str, name: str) -> dict[str, Any] | None:
    """The strategy at a quarter, or None where it has no budget of its own."""
    rule = RULES.get((stage, name))
    if (stage, name) in SEARCHED:
        return {"name": name, **SEARCHED[stage, name]}
    if isinstance(rule, Direct):
        return {"name": name, **rule.fields(0.25, 576, 11)}
    if isinstance(rule, Without) or "keep_ratio" not in REGISTRIES[stage][name].model_fields:
        return None
    return {"name": name, "keep_ratio": 0.25}


@torch.inference_mode()
def measure(model: Any, pipeline: Pipeline, inputs: dict[str, Any], repeats: int) -> tuple[float, float]:
    """Milliseconds of a prefill, and of its selection; medians."""
    clock, whole, selecting = clock_for("cpu"), [], []
    with pipeline.attach(model):
        for _ in range(repeats + 1):
            with ExitStack() as stack:
                spent = stack.enter_context(selection_clock(pipeline, torch.device("cpu")))
                for name in ("prepare", "observe", "apply"):
                    stack.enter_context(patch.object(Filtering, name, spent.watch(getattr(Filtering, name))))
                start = clock.stamp()
                model(**inputs, use_cache=True, logits_to_keep=1)
                whole.append(1e3 * clock.seconds(start, clock.stamp()))
                selecting.append(1e3 * spent.seconds)
    return statistics.median(whole[1:]), statistics.median(selecting[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--tower-layers", type=int, default=12)
    parser.add_argument("--text", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help="strategies whose stage/name contains this")
    parser.add_argument("--out", type=Path, help="write the rows here as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = build(options.layers, options.width, options.tower_layers, options.width)
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(3, 900, (options.text,), generator=generator)
    ids = torch.cat([text[:5], torch.full((576,), IMAGE), text[5:]])[None]
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 336, 336, generator=generator)}
    rows = []
    for stage in ("vision", "prefill"):
        for name in REGISTRIES[stage]:
            spec = settings(stage, name)
            if spec is None or (options.only and options.only not in f"{stage}/{name}"):
                continue
            whole, selecting = measure(model, Pipeline(**{stage: spec}), inputs, options.repeats)
            rows.append({"strategy": f"{stage}/{name}", "spec": spec, "prefill_ms": whole, "selection_ms": selecting})
            print(
                f"{stage}/{name:<15} prefill {whole:8.1f} ms  selection {selecting:7.2f} ms  {selecting / whole:6.2%}",
                flush=True,
            )
    if options.out is not None:
        content = {"settings": {key: value for key, value in vars(options).items() if key != "out"}, "rows": rows}
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
