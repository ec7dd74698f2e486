"""The rule about cost: how operations and the largest tensor grow with the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tokcomp.testing.benches import Bench
from tokcomp.testing.checks.decisions import crashed
from tokcomp.testing.instances import fresh
from tokcomp.testing.report import Breach, Unchecked
from tokcomp.testing.search import Search
from tokcomp.testing.situations import Situation

__all__ = ["cost", "cost_figures"]

SIZES = ((64, (8, 8)), (128, (8, 16)), (256, (16, 16)))
_PER_TOKEN = 0.2
"""Operations per further token that show a loop over tokens; loops over pieces stay below."""
_SQUARE = 3.0
"""Growth of the largest tensor at twice the tokens that shows a square (4), not a line (2)."""


@dataclass
class _Count(TorchDispatchMode):
    """Operations, and the elements of the largest tensor that one of them allocated."""

    operations: int = 0
    largest: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.largest = max(self.largest, value.untyped_storage().nbytes() // value.element_size())
        return result


def cost(strategy: Any, bench: Bench, search: Search) -> dict[str, str]:
    """The figures, judged by their growth."""
    counts = _counted(strategy, bench)
    sizes = [n for n, _ in SIZES]
    slope = (counts[2].operations - counts[1].operations) / (sizes[2] - sizes[1])
    growth = counts[2].largest / max(counts[1].largest, 1)
    _judge(bench.stage, slope, growth, counts[2].largest / sizes[2] ** 2)
    return _told(counts)


def cost_figures(strategy: Any, bench: Bench) -> dict[str, str]:
    """The figures, not judged; empty where the strategy cannot be run."""
    try:
        return _told(_counted(strategy, bench))
    except Unchecked:
        return {}


def _counted(strategy: Any, bench: Bench) -> list[_Count]:
    """Operations and sizes of one sample, at three numbers of tokens."""
    counts = []
    for n, grid in SIZES:
        text = (4,) if bench.stage == "prefill" else ()
        views = bench.views(strategy, Situation(bench.stage, (n,), grid, text))
        if not views:
            raise Unchecked("it acts nowhere in a model of this depth")
        with _Count() as count:
            for view in views:
                crashed(fresh(strategy), bench, view, copy=False)
        counts.append(count)
    return counts


def _told(counts: list[_Count]) -> dict[str, str]:
    sizes = [n for n, _ in SIZES]
    return {
        "operations": ", ".join(f"{count.operations} at {n} tokens" for n, count in zip(sizes, counts, strict=True)),
        "largest tensor": ", ".join(f"{count.largest} elements at {n}" for n, count in zip(sizes, counts, strict=True)),
    }


def _judge(stage: str, slope: float, growth: float, squares: float) -> None:
    if slope >= _PER_TOKEN:
        raise Breach(
            f"it takes {slope:.1f} more operations for every further token: a Python loop over tokens",
            do="work on whole tensors (sort, gather, scatter, cumsum); where the method chooses one token after the "
            "other, say so in departures()",
        )
    allowed = 1.5 if stage == "vision" else 0.2  # one similarity of all pairs of an image is part of published methods
    if growth >= _SQUARE and squares > allowed:
        noun = {"vision": "tokens", "prefill": "tokens", "cache": "entries"}[stage]
        raise Breach(
            f"its largest tensor grows with the square of the {noun}: {squares:.1f} n^2 elements, "
            f"{growth:.1f} times as much at twice the {noun}",
            do="take rows of the map piece by piece, or compare with a few tokens only; where the method compares all pairs, say "
            "so in departures()",
        )
