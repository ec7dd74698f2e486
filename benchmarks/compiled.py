"""Whether `torch.compile` would help the decisions of a prefill: what it makes of their tensor parts, beside those as they are.

    python -m benchmarks.compiled

Of each part: the operations that it gives the device as it is; what is left of them when it is compiled for any length (kernels
that inductor makes, and calls of libraries between them); how often the lengths of a prefill and a second batch size make it
compile again; what the first calls take; and the processor time of a call, at the size of LLaVA-1.5's tower and at a tiny one.
Needs a C++ compiler. Writes compiled.json.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch._inductor import metrics
from torch._inductor.utils import run_and_get_code

from benchmarks.operations import counted
from benchmarks.records import Log
from tokcomp.ops.matching import bipartite_matching
from tokcomp.ops.merging import apply_selection
from tokcomp.ops.pooling import merge_windows
from tokcomp.prefill.mustdrop import MustDrop
from tokcomp.testing.prefill_views import random_view

Result = tuple[Tensor, ...]
Part = tuple[Callable[..., Result], Callable[[int, int, int], tuple[Any, ...]]]
"""What is compiled, and its arguments for a batch, the side of a grid and a width."""

USUAL, TINY = (24, 1024), (9, 64)
LIBRARY = re.compile(r"extern_kernels\.\w+\(|torch\.ops\.aten\.[\w.]+\(")


def merged_block(keys: Tensor, tokens: Tensor, sizes: Tensor) -> Result:
    """ToMe in one block of the tower."""
    selection = bipartite_matching(keys, 16, n_prefix=1)
    return *apply_selection(tokens, sizes, selection), selection.keep


def merged_windows(tokens: Tensor, sizes: Tensor, origin: Tensor, grid: tuple[int, int]) -> Result:
    """MustDrop's merge in the tower."""
    selection = merge_windows(tokens, grid, (3, 3), 0.0, origin=origin)
    return *apply_selection(tokens, sizes, selection), selection.keep


def filtered(view: Any) -> Result:
    """MustDrop's decision in a layer of the language model."""
    return (MustDrop().filter(view).keep,)


def _tokens(batch: int, side: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(side)
    tokens = torch.randn(batch, side * side, width, generator=generator)
    return tokens, torch.ones(batch, side * side)


PARTS: dict[str, Part] = {
    "ToMe, a block": (
        merged_block,
        lambda batch, side, width: (_tokens(batch, side, 64)[0].roll(1), *_tokens(batch, side, width)),
    ),
    "MustDrop, the merge in the tower": (
        merged_windows,
        lambda batch, side, width: (
            *_tokens(batch, side, width),
            torch.arange(side * side).repeat(batch, 1),
            (side, side),
        ),
    ),
    "MustDrop, a filter's decision": (
        filtered,
        lambda batch, side, width: (random_view([side * side] * batch, filter=MustDrop(), rows=[side] * batch),),
    ),
}


def compiled(name: str) -> Iterator[dict[str, Any]]:
    """What becomes of one part."""
    plain, arguments = PARTS[name]
    torch._dynamo.reset()
    metrics.reset()
    counters.clear()
    call = torch.compile(plain, dynamic=True)
    given = arguments(1, *USUAL)
    began = time.perf_counter()
    found, code = run_and_get_code(call, *given)
    first = time.perf_counter() - began
    kernels, graphs = metrics.generated_kernel_count, counters["stats"]["unique_graphs"]
    row: dict[str, Any] = {
        "part": name, "operations": counted(lambda: plain(*given)), "kernels": kernels,
        "library_calls": sum(len(LIBRARY.findall(part)) for part in code), "graphs": graphs, "first_seconds": first,
    }  # fmt: skip
    same = alike(found, plain(*given))
    for label, batch, sides in (("lengths", 1, (23, 20, 15, 9)), ("batch", 4, (24, 9))):
        began = time.perf_counter()
        for side in sides:
            given = arguments(batch, side, USUAL[1])
            same = same and alike(call(*given), plain(*given))
        row[f"graphs_after_{label}"] = counters["stats"]["unique_graphs"]
        row[f"{label}_seconds"] = time.perf_counter() - began
    yield {"kind": "graphs", **row, "same": same}
    for size, (side, width) in (("usual", USUAL), ("tiny", TINY)):
        given = arguments(1, side, width)
        plain_ms, compiled_ms = beside(lambda: plain(*given), lambda: call(*given))  # noqa: B023
        yield {"kind": "time", "part": name, "size": size, "plain_ms": plain_ms, "compiled_ms": compiled_ms}


def alike(one: Result, other: Result) -> bool:
    """Equal shapes and choices, and the same states but for rounding."""
    return all(a.shape == b.shape and (torch.allclose(a, b, rtol=1e-5, atol=1e-6) if a.is_floating_point() else a.equal(b))
               for a, b in zip(one, other, strict=True))  # fmt: skip


def beside(*calls: Callable[[], Any], rounds: int = 40) -> list[float]:
    """Processor time of each call in milliseconds, the median of rounds in which they take turns."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for times, call in zip(taken, calls, strict=True):
            began = time.process_time()
            call()
            times.append(1e3 * (time.process_time() - began))
    return [statistics.median(times[2:]) for times in taken]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    inductor.force_disable_caches = True
    log = Log(options.out / "compiled.json", torch.device("cpu"), "python -m benchmarks.compiled")
    with torch.no_grad():
        for name in PARTS:
            for row in compiled(name):
                log.add(**row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
