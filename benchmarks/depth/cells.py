"""Which pipelines are run: every stage and strategy by budget, by layer and by decoding step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from tokcomp.embedded.hard.questions import LONG_KINDS

TOKENS = 144
TOWER_BLOCKS = 7  # up to the feature layer
BUDGETS = (36, 72, 18)
"""Vision tokens kept: a quarter, a half, an eighth."""
LAYERS = tuple(range(1, 10))
STEPS = (0, 1, 2, 4, 8, 12, 16, 20)

_REDUCERS = (
    "random", "uniform", "fastervlm", "divprune", "visionzip", "vispruner", "hired", "prumerge", "prumerge_plus",
)  # fmt: skip
_FILTERS = ("fastv", "random", "uniform", "dart")
_POLICIES = ("random", "h2o", "snapkv", "pyramidkv", "adakv", "tova", "knorm", "keydiff", "streaming_llm")


@dataclass(frozen=True)
class Cell:
    """One pipeline.

    Attributes:
        table: which of the page's tables it belongs to.
        strategy: its name there; "oracle" and "no objects" know the scene.
        where: budget in tokens or share, layer, or step.
        vision, prefill, cache: fields of the strategies, besides their name.
        kinds: question kinds; empty: all of the benchmark.
    """

    table: str
    strategy: str
    where: float = 0
    vision: dict[str, Any] | None = None
    prefill: dict[str, Any] | None = None
    cache: dict[str, Any] | None = None
    kinds: tuple[str, ...] = field(default=())

    @property
    def id(self) -> str:
        return f"{self.table}-{self.strategy}-{self.where:g}".replace(" ", "_")

    def record(self) -> dict[str, Any]:
        return asdict(self)


def all_cells() -> list[Cell]:
    """Every cell, the most telling first."""
    cells = [*_baselines(), *_by_layer(), *_by_budget(), *_by_step()]
    return sorted(cells, key=_priority)


def _priority(cell: Cell) -> int:
    if cell.table == "baseline":
        return 0
    telling = cell.strategy in ("random", "oracle", "fastv", "fastervlm", "h2o", "snapkv")
    first = cell.where in {"vision": (36,), "layer": (5, 7), "cache": (0.25,), "step": (2, 8)}.get(cell.table, ())
    return 1 if first and (telling or cell.strategy == "all leave") else 2 if first else 3 + (not telling)


def _baselines() -> Iterator[Cell]:
    yield Cell("baseline", "dense")
    yield Cell("baseline", "dense long", kinds=LONG_KINDS)
    yield Cell("baseline", "no image")
    yield Cell("baseline", "no objects", where=100, vision={"name": "no objects", "keep_tokens": 100})


def _by_budget() -> Iterator[Cell]:
    for budget in BUDGETS:
        for name in (*_REDUCERS, "oracle"):
            yield Cell("vision", name, budget, vision={"name": name, "keep_tokens": budget})
        r = (TOKENS - budget) // TOWER_BLOCKS
        yield Cell("vision", f"tome ({TOKENS - TOWER_BLOCKS * r})", budget, vision={"name": "tome", "r": r})
    for budget in BUDGETS[1:]:
        for name in _FILTERS:
            yield Cell("prefill", name, budget, prefill={"name": name, "layer": 5, "keep_tokens": budget})
    for share in (0.25, 0.5, 0.125):
        for name in (*_POLICIES, "oracle"):
            yield Cell("cache", name, share, cache=_policy(name, share), kinds=LONG_KINDS)


def _policy(name: str, share: float) -> dict[str, Any]:
    """Fields for ``share`` of the entries, text exempt and inside the budget, so that all policies take equal bytes."""
    if name == "h2o":
        return {"name": name, "heavy_ratio": share / 2, "recent_ratio": share / 2}
    if name == "adakv":
        return {"name": name, "base": {"name": "snapkv", "keep_ratio": share}}
    fields = {"name": name, "keep_ratio": share}
    return fields if name in ("streaming_llm", "oracle") else {**fields, "keep_text": True}


def _by_layer() -> Iterator[Cell]:
    for layer in LAYERS:
        for name in (*_FILTERS, "oracle", "no objects"):
            yield Cell("layer", name, layer, prefill={"name": name, "layer": layer, "keep_tokens": 36})


def _by_step() -> Iterator[Cell]:
    for step in STEPS:
        yield Cell("step", "all leave", step, cache={"name": "leave", "step": step}, kinds=LONG_KINDS)
        kept = {"name": "leave", "step": step, "keep_tokens": 36}
        yield Cell("step", "36 stay at random", step, cache=kept, kinds=LONG_KINDS)
