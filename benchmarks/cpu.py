"""Speed and memory on a CPU, small shapes in float32 with random weights: `make bench` (eight minutes on two cores).

    python -m benchmarks.cpu --minutes 8 --threads 2 --out benchmarks/results

Writes cpu.json after every measurement; the most important cells come first, and what no longer fits is named in it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.ceilings import ceilings
from benchmarks.gpu import MAIN, Bench
from benchmarks.growth import grow_with_batch, grow_with_layers, grow_with_tokens
from benchmarks.plan import Plan
from benchmarks.records import Log
from benchmarks.shapes import CPU_SMALL, build

# Tiles of 144 tokens: 80 of them are 11,520. Small, so that the quadratic part stays within minutes.
SLIM = replace(
    CPU_SMALL, name="4 layers x 256", hidden=256, intermediate=704, layers=4, heads=4, kv_heads=4, image_size=168
)
LONG = replace(CPU_SMALL, name="8 layers x 512 (5 tiles)", layers=8, tiles=5)


def plan(bench: Bench, log: Log) -> None:
    """All cells; seconds are what a step takes at most on two quiet cores."""
    step, small = bench.plan.step, CPU_SMALL
    step("ceilings", 5, lambda: log.add(kind="ceilings", **ceilings(bench.device, bench.dtype)))
    step("build", 10, lambda: bench.load(small))
    step("prefill small b1", 75, lambda: bench.prefill(small, 1, repeats=9, seconds=60))
    step("attainable small b1", 15, lambda: bench.cell(small, 1).attainable(bench.pipelines, repeats=5, seconds=10))
    step("selection small b1", 30, lambda: bench.cell(small, 1).selection(bench.pipelines, repeats=3))
    step("operations small b1", 25, lambda: bench.cell(small, 1).operations(bench.pipelines))
    step("decode small b1", 40, lambda: bench.cell(small, 1).decode_beside_equal_length(
        bench.some(*MAIN[:3], "streaming_llm"), new_tokens=32, repeats=3, seconds=8))  # fmt: skip
    step("answers small b1", 40, lambda: bench.cell(small, 1).answers(
        bench.some(*MAIN), new_tokens=128, repeats=2, seconds=20))  # fmt: skip
    step("memory small b1", 30, lambda: bench.cell(small, 1).memory(bench.some(*MAIN)))
    step(
        "prefill small b4", 40, lambda: bench.prefill(small, 4, repeats=2, seconds=20, pipelines=bench.some(*MAIN[:3]))
    )
    step("build long", 10, lambda: bench.load(LONG))
    step("published long b1", 100, lambda: bench.beside_published(LONG, repeats=3, seconds=30))
    slim = build(SLIM, bench.device, bench.dtype)
    grow_with_tokens(bench.plan, slim, SLIM, (1, 2, 4, 10, 20, 40), log, text=64, seconds=15)
    grow_with_batch(bench.plan, slim, SLIM, (1, 4, 16, 64), log, text=64, seconds=15)
    grow_with_layers(bench.plan, SLIM, (4, 8, 16, 32), log, bench.device, bench.dtype, text=64, seconds=15)
    grow_with_tokens(bench.plan, slim, SLIM, (80,), log, text=64, seconds=50)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="steps that no longer fit are left out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--only", default="", help="only the steps whose name contains this (and those that build)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cpu")
    command = f"python -m benchmarks.cpu --minutes {options.minutes:g} --threads {options.threads}"
    log = Log(options.out / "cpu.json", device, command, dtype="float32", text_tokens=64)
    bench = Bench(Plan(log, 60 * options.minutes, options.only), log, device, torch.float32)
    plan(bench, log)
    return 1 if bench.plan.failed else 0


if __name__ == "__main__":
    sys.exit(main())
