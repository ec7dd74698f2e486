"""Speed and memory on a GPU, 7B shapes in bfloat16 with random weights: `make bench-gpu`.

    python -m benchmarks.gpu --minutes 5 --out benchmarks/results

Writes gpu.json after every measurement; the most important cells come first, and what no longer fits is named in it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines.fastv import PublishedFastV
from benchmarks.baselines.h2o import PublishedH2O
from benchmarks.baselines.mustdrop import PublishedMustDrop
from benchmarks.ceilings import ceilings
from benchmarks.cells import Cell, release
from benchmarks.growth import grow_with_batch, grow_with_layers, grow_with_tokens
from benchmarks.pipelines import named_pipelines
from benchmarks.plan import Plan
from benchmarks.records import Log
from benchmarks.shapes import LLAVA_7B, LLAVA_NEXT_7B, QWEN_DECODER_7B, TINY, Shape, build, prompt
from benchmarks.sides import Prefill
from benchmarks.waits import waits
from tokcomp import Pipeline

TEXT, NEW_TOKENS = 64, 128
MAIN = ("fastv (K=2, half)", "mustdrop (three stages)", "h2o", "tome")


class Bench:
    """Models and cells of one run; a cell's inputs and promises are made once."""

    def __init__(self, plan: Plan, log: Log, device: torch.device, dtype: torch.dtype) -> None:
        self.plan, self.log, self.device, self.dtype = plan, log, device, dtype
        self.model: Any = None
        self.cells: dict[Any, Cell] = {}
        self.pipelines: dict[str, Pipeline] = {}

    def load(self, shape: Shape) -> None:
        self.model, self.cells = None, {}
        release(self.device)
        self.model = build(shape, self.device, self.dtype)
        self.pipelines = named_pipelines(self.model, prompt(shape, 1, TEXT, self.device, self.dtype)["pixel_values"])

    def cell(self, shape: Shape, batch: int) -> Cell:
        key = (shape.name, batch)
        if key not in self.cells:
            self.cells[key] = Cell(self.model, shape, prompt(shape, batch, TEXT, self.device, self.dtype), self.log)
        return self.cells[key]

    def some(self, *names: str) -> dict[str, Pipeline]:
        return {name: self.pipelines[name] for name in names}

    def published(self, cell: Cell) -> dict[str, Any]:
        """The re-created published code paths, with the selections of the pipelines beside them."""
        must = self.pipelines["mustdrop (three stages)"].vision
        assert must is not None
        settings: Any = must
        return {
            "published fastv (eager, removal)": PublishedFastV(self.model, cell.inputs, eager=True),
            "published fastv (one map, removal)": PublishedFastV(self.model, cell.inputs),
            "published fastv (one map, mask)": PublishedFastV(self.model, cell.inputs, removes=False),
            "published mustdrop": PublishedMustDrop(
                self.model, cell.inputs, threshold=settings.threshold, key_ratio=settings.key_ratio
            ),
            "published h2o": PublishedH2O(self.model, cell.inputs),
        }

    def prefill(self, shape: Shape, batch: int, *, repeats: int = 5, seconds: float = 15.0, **some: Any) -> None:
        self.cell(shape, batch).prefill(some.get("pipelines", self.pipelines), repeats=repeats, seconds=seconds)

    def beside_published(self, shape: Shape, *, repeats: int = 5, seconds: float = 8.0) -> None:
        cell = self.cell(shape, 1)
        cell.prefill(
            self.some(*MAIN[:3]), self.published(cell), repeats=repeats, seconds=seconds, kind="beside published"
        )
        cell.memory(self.some(*MAIN[:3]), self.published(cell))

    def waiting(self, shape: Shape) -> None:
        """Where the host waits in a prefill, dense and compressed."""
        cell = self.cell(shape, 1)
        self.log.add(kind="waits", side="dense", **cell.about, places=waits(Prefill(self.model, cell.inputs)))
        for name, pipeline in self.pipelines.items():
            side = Prefill(self.model, cell.inputs, pipeline)
            with side.prepared():
                self.log.add(kind="waits", side=name, **cell.about, places=waits(side))


def full(bench: Bench, small: Shape, large: Shape, qwen: Shape) -> None:
    """All cells, the most important first; seconds are what a step takes at most on an H200."""
    step, cell = bench.plan.step, bench.cell
    step("ceilings", 2, lambda: bench.log.add(kind="ceilings", **ceilings(bench.device, bench.dtype)))
    step("build 7b", 5, lambda: bench.load(small))
    step("prefill large b4", 28, lambda: bench.prefill(large, 4, seconds=12))
    step("attainable large b4", 6, lambda: cell(large, 4).attainable(bench.pipelines, repeats=3, seconds=5))
    step("prefill small b1", 9, lambda: bench.prefill(small, 1, repeats=9, seconds=6))
    step("selection small b1", 6, lambda: cell(small, 1).selection(bench.pipelines, repeats=5))
    step("operations small b1", 6, lambda: cell(small, 1).operations(bench.pipelines))
    step("published large b1", 12, lambda: bench.beside_published(large))
    step("decode small b1", 20, lambda: cell(small, 1).decode_beside_equal_length(
        bench.some(*MAIN[:3], "streaming_llm"), new_tokens=24, repeats=2, seconds=2))  # fmt: skip
    step("memory large b4", 7, lambda: cell(large, 4).memory(bench.pipelines))
    step("prefill small b16", 15, lambda: bench.prefill(small, 16, seconds=8))
    step("build qwen", 5, lambda: bench.load(qwen))
    step("prefill qwen b4", 18, lambda: bench.prefill(qwen, 4, repeats=3, seconds=8))
    step("attainable qwen b4", 6, lambda: cell(qwen, 4).attainable(bench.pipelines, repeats=3, seconds=4))
    step("build 7b again", 5, lambda: bench.load(small))
    tiles = tuple(large.tiles * n // 20 for n in (4, 8, 20, 40, 80)) if large.tiles > 1 else (1, 2)
    grow_with_tokens(bench.plan, bench.model, small, tiles, bench.log, text=TEXT, seconds=6)
    grow_with_layers(bench.plan, small, (4, 8, 16, 32), bench.log, bench.device, bench.dtype, text=TEXT, seconds=4)
    step("prefill large b16", 25, lambda: bench.prefill(large, 16, repeats=2, seconds=12, pipelines=bench.some(*MAIN)))
    grow_with_batch(bench.plan, bench.model, small, (1, 4, 16, 64), bench.log, text=TEXT, seconds=6)
    step("answers small b1", 30, lambda: cell(small, 1).answers(
        bench.some(*MAIN), new_tokens=NEW_TOKENS, repeats=1, seconds=10, warmup=0))  # fmt: skip
    step("prefill small b4", 9, lambda: bench.prefill(small, 4, seconds=5))
    step("prefill large b1", 9, lambda: bench.prefill(large, 1, seconds=6))
    step("attainable small b1", 3, lambda: cell(small, 1).attainable(bench.pipelines, repeats=5, seconds=3))
    step("decode large b4", 16, lambda: cell(large, 4).decode_beside_equal_length(
        bench.some(*MAIN[:3]), new_tokens=24, repeats=2, seconds=2))  # fmt: skip
    step("answers large b4", 30, lambda: cell(large, 4).answers(
        bench.some(*MAIN[:3]), new_tokens=NEW_TOKENS, repeats=1, seconds=10, warmup=0))  # fmt: skip


def smoke(bench: Bench, small: Shape, large: Shape) -> None:
    """A first look: where the host waits, and the main cells with few repeats."""
    step = bench.plan.step
    step("ceilings", 5, lambda: bench.log.add(kind="ceilings", **ceilings(bench.device, bench.dtype)))
    step("build 7b", 10, lambda: bench.load(small))
    step("waits small b1", 5, lambda: bench.waiting(small))
    step("prefill small b1", 5, lambda: bench.prefill(small, 1, repeats=5, seconds=5))
    step("selection small b1", 5, lambda: bench.cell(small, 1).selection(bench.pipelines, repeats=3))
    step("prefill large b4", 12, lambda: bench.prefill(large, 4, repeats=3, seconds=8))
    step("decode small b1", 15, lambda: bench.cell(small, 1).decode_beside_equal_length(
        bench.some(*MAIN[:3], "streaming_llm", "none"), new_tokens=12, repeats=1, seconds=2))  # fmt: skip
    step("published large b1", 12, lambda: bench.beside_published(large))
    step("attainable large b4", 8, lambda: bench.cell(large, 4).attainable(bench.pipelines, repeats=2, seconds=4))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.0, help="steps that no longer fit are left out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--smoke", action="store_true", help="a first look, about a minute")
    parser.add_argument("--only", default="", help="only the steps whose name contains this (and those that build)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script itself (on a CPU, too)")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("no CUDA device is here: run `make bench` for the CPU, or try the script with --tiny")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = "gpu-smoke" if options.smoke else "gpu-tiny" if options.tiny else "gpu"
    log = Log(
        options.out / f"{name}.json",
        device,
        f"python -m benchmarks.gpu --minutes {options.minutes:g}",
        dtype="bfloat16",
        text_tokens=TEXT,
    )
    bench = Bench(Plan(log, 60 * options.minutes, options.only), log, device, torch.bfloat16)
    small, large, qwen = (TINY,) * 3 if options.tiny else (LLAVA_7B, LLAVA_NEXT_7B, QWEN_DECODER_7B)
    if options.smoke:
        smoke(bench, small, large)
    else:
        full(bench, small, large, qwen)
    return 1 if bench.plan.failed else 0


if __name__ == "__main__":
    sys.exit(main())
