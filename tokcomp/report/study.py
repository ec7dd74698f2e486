"""All runs of a store as one study: which are on the Pareto front, what each stage adds, how they differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokcomp.errors import ConfigurationError
from tokcomp.experiment.store import Store
from tokcomp.report.rows import STAGES, Row, read_row
from tokcomp.report.statistics import Difference, holm, paired_differences

__all__ = ["Study", "pareto_front", "read_study"]

COSTS = {
    "flops": "FLOPs", "kv_bytes": "KV cache", "equivalent_tokens": "equivalent tokens", "prefill_time": "prefill time",
    "total_time": "end-to-end time",
}  # fmt: skip
"""Costs that accuracy is drawn against: attribute of a row and its name."""


@dataclass(frozen=True)
class Study:
    """The runs of one store.

    Attributes:
        root: the store's folder.
        rows: runs that ended well, by stage names and command line.
        failed: keys of runs that failed. ``unread``: what was wrong with records that could not be read.
        older: keys of records that are left out: the same configuration was run again later, by other code.
        baseline: the run that every other one is compared with, or None: the dense model.
    """

    root: Path
    rows: tuple[Row, ...]
    failed: tuple[str, ...]
    unread: tuple[str, ...]
    baseline: Row | None = None
    older: tuple[str, ...] = ()

    @cached_property
    def differences(self) -> list[Difference | None]:
        """Of every run, against the baseline run or the dense model on the same questions; None where a run answered
        other questions than the baseline."""
        groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number, row in enumerate(self.rows):
            groups[row.questions].append(number)
        found: list[Difference | None] = [None] * len(self.rows)
        for questions, numbers in groups.items():
            if self.baseline is not None and self.baseline.questions != questions:
                continue
            counted = np.array(self.rows[numbers[0]].headline)
            scores = np.stack([self.rows[number].scores[counted] for number in numbers])
            against = (
                self.baseline.scores[counted]
                if self.baseline is not None
                else np.stack([self.rows[number].dense_scores[counted] for number in numbers])
            )
            for number, difference in zip(numbers, paired_differences(scores, against), strict=True):
                found[number] = difference
        tested = [number for number, difference in enumerate(found) if difference is not None]
        corrected = holm(np.array([difference.p for difference in found if difference is not None]))
        for number, p in zip(tested, corrected.tolist(), strict=True):  # for all runs together, whatever they answered
            found[number] = replace(found[number], p_corrected=p)  # type: ignore[type-var]
        return found

    def options(self, stage: str) -> tuple[str, ...]:
        """Strategies of a stage that occur, ``none`` first."""
        place = STAGES.index(stage)
        names = {row.stages[place] for row in self.rows}
        return tuple(sorted(names, key=lambda name: (name != "none", name)))

    def means(self, first: str, second: str) -> NDArray[np.float64]:
        """Mean accuracy by two stages' strategies ``[options of first, options of second]``; NaN where no run is."""
        a, b = self.options(first), self.options(second)
        sums, counts = np.zeros((len(a), len(b))), np.zeros((len(a), len(b)))
        x, y = STAGES.index(first), STAGES.index(second)
        for row in self.rows:
            place = a.index(row.stages[x]), b.index(row.stages[y])
            sums[place] += row.accuracy
            counts[place] += 1
        with np.errstate(invalid="ignore"):
            return np.asarray(sums / counts)

    def effects(self, stage: str) -> dict[str, float]:
        """Main effect of each strategy of a stage: mean accuracy of its runs less the mean of all runs."""
        overall = float(np.mean([row.accuracy for row in self.rows]))
        place = STAGES.index(stage)
        groups: dict[str, list[float]] = defaultdict(list)
        for row in self.rows:
            groups[row.stages[place]].append(row.accuracy)
        return {name: float(np.mean(groups[name])) - overall for name in self.options(stage)}

    def interactions(self, first: str, second: str) -> NDArray[np.float64]:
        """What two strategies together give beyond the sum of their main effects ``[first, second]``."""
        means = self.means(first, second)
        rows, columns = np.nanmean(means, axis=1, keepdims=True), np.nanmean(means, axis=0, keepdims=True)
        return np.asarray(means - rows - columns + np.nanmean(means))


def pareto_front(rows: Sequence[Row], cost: str) -> list[int]:
    """Numbers of the runs that no other run beats in accuracy at the same or a lower cost, by ascending cost."""
    known = [(getattr(row, cost), -row.accuracy, number) for number, row in enumerate(rows)]
    front: list[int] = []
    best = -1.0
    for _, negative, number in sorted(entry for entry in known if entry[0] is not None):
        if -negative > best:
            best = -negative
            front.append(number)
    return front


def read_study(root: Path, *, baseline: str | None = None) -> Study:
    """Read a store.

    Args:
        root: its folder.
        baseline: key of a run (its first characters are enough), or a part of its command line such as
            ``vision=random``, that names one run.

    Raises:
        ConfigurationError: no store, no run that ended well, or a baseline that names no run or several.
    """
    rows: list[Row] = []
    failed: list[str] = []
    unread: list[str] = []
    same: dict[object, object] = {}  # questions are the same in most runs: one copy of them is enough
    for path in Store.existing(root).records():
        try:
            row = read_row(path, same)
        except ConfigurationError as error:
            unread.append(str(error))
            continue
        if row is None:
            failed.append(path.parent.name)
        else:
            rows.append(row)
    if not rows:
        told = f": {unread[0]}" if unread else ""
        raise ConfigurationError(f"{root} holds no run that ended well ({len(failed)} failed{told}): sweep first")
    rows, older = _newest(rows)
    rows.sort(key=lambda row: (row.stages, row.overrides))
    chosen = None if baseline is None else _chosen(rows, baseline)
    return Study(root, tuple(rows), tuple(failed), tuple(unread), chosen, older)


def _newest(rows: Sequence[Row]) -> tuple[list[Row], tuple[str, ...]]:
    """The last run of every configuration, and the keys of the others."""
    last: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: (row.started, row.key)):
        last[row.settings] = row
    kept = {row.key for row in last.values()}
    return list(last.values()), tuple(row.key for row in rows if row.key not in kept)


def _chosen(rows: Sequence[Row], baseline: str) -> Row:
    parts = set(baseline.split())
    found = [row for row in rows if row.key.startswith(baseline) or parts <= set(row.overrides)]
    if len(found) != 1:
        known = "; ".join(" ".join(row.overrides) for row in (found or rows)[:4])
        raise ConfigurationError(
            f"--baseline '{baseline}' names {len(found) or 'no'} runs, give one by its key or its settings: {known}"
        )
    return found[0]
