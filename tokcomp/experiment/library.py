"""The comparison of all strategies: how each is brought to a share of the vision tokens, or of the cache.

A share means, by stage: of the image's tokens, those that the vision stage leaves; of the vision tokens, those that enter the
language model's last layer; of the cache's bytes, those that are there after the prefill. A strategy with ``keep_ratio``
takes the share as it is; :data:`RULES` tells of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokcomp.benchmarks.base import Sample
from tokcomp.errors import TokcompError
from tokcomp.experiment.calibration import TOLERANCE, Measure, Search, Target, UnreachableError, calibrate, measured
from tokcomp.experiment.load import LoadedModel
from tokcomp.pipeline import Pipeline
from tokcomp.registry import REGISTRIES

__all__ = ["MEASURES", "RULES", "SHARES", "Cell", "Direct", "Searched", "Without", "cells", "settle"]

SHARES = {"50": 1 / 2, "25": 1 / 4, "11": 1 / 9, "6": 1 / 16}
"""288, 144, 64 and 36 of 576 tokens, by their name in per cent."""

MEASURES: dict[str, Measure] = {"vision": "after_vision", "prefill": "last_layer", "cache": "kv_bytes"}

Fields = dict[str, Any]


@dataclass(frozen=True)
class Direct:
    """Fields that meet a share without being measured.

    Attributes:
        fields: ``(share, tokens of an image, blocks before the features) -> fields``.
    """

    fields: Callable[[float, int, int], Fields]


@dataclass(frozen=True)
class Searched:
    """Fields that follow from one value, which is calibrated."""

    search: Search
    fields: Callable[[float], Fields]


@dataclass(frozen=True)
class Without:
    """A strategy that has no budget of its own, and why."""

    reason: str


def _merged_blocks(share: float, tokens: int, blocks: int) -> Fields:
    """As many tokens in every block as it takes, the rest in the last one that merges; a block merges half at most."""
    goal = round(share * tokens)

    def schedule(r: int) -> tuple[list[int], int]:
        left, taken = tokens, []
        for _ in range(blocks):
            taken.append(min(r, left // 2, left - goal))
            left -= taken[-1]
        return taken, left

    best = min(range(1, tokens), key=lambda r: (schedule(r)[1], r))
    return {"r": schedule(best)[0]}


def _steps(share: float, tokens: int, blocks: int) -> Fields:
    each = {"name": "fastv", "keep_ratio": share ** (1 / 3)}
    return {"steps": [{**each, "layer": layer} for layer in (0.25, 0.5, 0.75)]}


RULES: dict[tuple[str, str], Direct | Searched | Without] = {
    ("vision", "tome"): Direct(_merged_blocks),
    ("vision", "pool"): Searched(Search("window", 1, 12, whole=True), lambda value: {"window": round(value)}),
    ("vision", "mustdrop"): Searched(Search("threshold", -1.0, 1.0), lambda value: {"threshold": value}),
    ("vision", "evit"): Searched(Search("keep_ratio", 0.05, 1.0), lambda value: {"keep_ratio": value}),
    ("vision", "pitome"): Searched(Search("r", 0.0, 0.499), lambda value: {"r": value}),
    ("vision", "joint"): Direct(lambda share, *_: {"strategy": {"name": "fastervlm", "keep_ratio": share}}),
    ("vision", "sequence"): Without("its steps have the budgets"),
    ("prefill", "mustdrop"): Searched(
        Search("global_threshold", 1e-6, 1.0, logarithmic=True),
        lambda value: {"global_threshold": value, "individual_threshold": value},
    ),
    ("prefill", "pyramiddrop"): Direct(lambda share, *_: {"keep_ratios": [share ** (i / 3) for i in (1, 2, 3)]}),
    ("prefill", "sparsevlm"): Searched(
        Search("keep_ratios", 1e-3, 1.0), lambda value: {"keep_ratios": [value ** (i / 4) for i in (1, 2, 3, 4)]}
    ),
    ("prefill", "schedule"): Direct(_steps),
    ("prefill", "dart"): Direct(lambda share, *_: {"keep_ratio": share, "rounding": "exact"}),
    ("cache", "h2o"): Direct(lambda share, *_: {"heavy_ratio": share / 2, "recent_ratio": share / 2}),
    ("cache", "adakv"): Direct(lambda share, *_: {"base": {"name": "snapkv", "keep_ratio": share}}),
    ("cache", "merging"): Direct(lambda share, *_: {"base": {"name": "snapkv", "keep_ratio": share}}),
    ("cache", "by_layer"): Without("its steps have the budgets"),
    ("cache", "interval"): Without("it leaves the prompt whole; its base has the budget of the later cuts"),
    ("cache", "output_aware"): Without("it leaves the prompt whole until the answer has begun; see Long answers"),
    ("cache", "vlcache"): Searched(Search("keep_ratio", 0.002, 1.0), lambda value: {"keep_ratio": value}),
    ("cache", "mustdrop"): Without("it drops what a prefill filter has dropped, and there is none"),
}
"""How a strategy is brought to a share that has no ``keep_ratio``, needs more than that, or takes it at every layer."""


@dataclass(frozen=True)
class Cell:
    """One line of the comparison.

    Attributes:
        stage, name: the strategy.
        per_cent: the share's name.
        fields: the strategy's fields that bring it there; None where it cannot be.
        figure: the measured figure of the share, where it was calibrated.
        reason: why it cannot be.
    """

    stage: str
    name: str
    per_cent: str
    fields: Fields | None = None
    figure: float | None = None
    reason: str | None = None

    @property
    def key(self) -> str:
        """Name of its files."""
        return f"{self.stage}-{self.name}-{int(self.per_cent):02d}"

    @property
    def spec(self) -> dict[str, Any]:
        return {"name": self.name, **(self.fields or {})}


def cells(only: Sequence[str] = (), shares: Sequence[str] = tuple(SHARES)) -> list[Cell]:
    """The lines to be made, every strategy of every stage at every share; ``only``: those of these ``stage/name``."""
    return [
        Cell(stage, name, per_cent)
        for stage, registry in REGISTRIES.items()
        for name in registry
        if not only or f"{stage}/{name}" in only
        for per_cent in shares
    ]


def settle(cell: Cell, loaded: LoadedModel, samples: Callable[[], Sequence[Sample]], adapted: Fields) -> Cell:
    """The cell with the fields that bring it to its share, or with the reason why that cannot be.

    Args:
        cell: which strategy and share.
        loaded: the model.
        samples: gives the calibration split, where something has to be measured.
        adapted: fields that the strategy has whatever its share.
    """
    rule = RULES.get((cell.stage, cell.name))
    share = SHARES[cell.per_cent]
    grid = loaded.shape.tower.grid if loaded.shape.tower is not None else None
    tokens = grid[0] * grid[1] if grid is not None else 0
    try:
        if rule is None:
            fields, figure = _by_ratio(cell, share), None
        elif isinstance(rule, Without):
            raise UnreachableError(rule.reason)
        elif isinstance(rule, Direct):
            blocks = (loaded.shape.feature_block or 0) + 1
            fields, figure = rule.fields(share, tokens, blocks), None
        else:
            whole = None if cell.stage == "cache" else float(tokens)
            fields, figure = _searched(cell, rule, share, whole, loaded, samples(), adapted)
        Pipeline(**{cell.stage: {"name": cell.name, **adapted, **fields}})
    except TokcompError as error:
        return Cell(cell.stage, cell.name, cell.per_cent, reason=str(error))
    return Cell(cell.stage, cell.name, cell.per_cent, {**adapted, **fields}, figure)


def _by_ratio(cell: Cell, share: float) -> Fields:
    fields = REGISTRIES[cell.stage][cell.name].model_fields
    if "keep_ratio" not in fields:
        raise UnreachableError(
            f"{cell.stage} '{cell.name}' has no keep_ratio, and how else it is brought to a share is not declared: add it "
            "to tokcomp.experiment.library.RULES"
        )
    return {"keep_ratio": share}


def _searched(cell: Cell, rule: Searched, share: float, whole: float | None, loaded: LoadedModel,
              samples: Sequence[Sample], adapted: Fields) -> tuple[Fields, float]:  # fmt: skip
    measure = MEASURES[cell.stage]

    def figure_at(value: float) -> float:
        pipeline = Pipeline(**{cell.stage: {"name": cell.name, **adapted, **rule.fields(value)}})
        return measured(loaded, samples, pipeline)[measure]

    if whole is None:
        whole = measured(loaded, samples, Pipeline())[measure]
    # Where few tokens are left, a single one is more than 3 %.
    nearest = 0.0 if cell.stage == "cache" else 1 / (share * whole)
    found = calibrate(figure_at, rule.search, Target(measure, share * whole, max(TOLERANCE, nearest)))
    return rule.fields(found.value), found.figure
