"""Search the Pareto front of accuracy against a cost, over strategies and their settings.

  tokcomp search vision=none,tome,fastervlm cache=none,h2o 'vision.tome.r=range(4,21)' \\
      'vision.fastervlm.keep_ratio=interval(0.05,0.8)' benchmark.samples=100 --trials 40

A comma chooses between strategies; STAGE.STRATEGY.SETTING=interval(a,b), range(a,b) or a,b,c draws a setting where that
strategy is chosen. Runs go into a store: `tokcomp report` reads it. The same command goes on until there are as many
trials. Exit status 3: some trials failed."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tokcomp.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from tokcomp.experiment.search import Searched

__all__ = ["add_arguments", "execute"]

SOME_FAILED = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", default=[], metavar="name=value,value", help="what is searched")
    parser.add_argument("--trials", type=int, default=50, help="runs in all, earlier ones counted (default: 50)")
    parser.add_argument("--cost", default="flops", help="flops, kv_bytes or equivalent_tokens (default: flops)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampler")
    parser.add_argument("--out", type=Path, metavar="DIR", help="store of the runs (default: named after the search)")


def execute(options: argparse.Namespace) -> int:
    from rich.console import Console

    from tokcomp.errors import ConfigurationError
    from tokcomp.experiment.search import search

    if options.trials < 1:
        raise ConfigurationError(f"--trials={options.trials}: give a number of runs, 1 or more")
    console = Console()
    named = hashlib.sha256("\n".join(sorted([*options.overrides, options.cost])).encode()).hexdigest()[:8]
    folder = options.out or Path("searches") / named
    with _shown(console, options.trials) as watch:
        found = search(
            options.overrides, folder, trials=options.trials, cost=options.cost, seed=options.seed, watch=watch
        )
    if any(found.store.records()):
        _print_front(console, folder, options.cost)
    return _verdict(console, found, folder)


@contextmanager
def _shown(console: Console, trials: int) -> Iterator[Callable[[Searched], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
               TimeRemainingColumn())  # fmt: skip
    bars = Progress(*columns, console=console, speed_estimate_period=600)
    task = bars.add_task("trials", total=trials)

    def watch(found: Searched) -> None:
        bars.start()  # not before the search has accepted what it was given
        bars.update(task, completed=found.trials)

    try:
        yield watch
    finally:
        bars.stop()


def _print_front(console: Console, folder: Path, cost: str) -> None:
    from tokcomp.report.many import runs_table
    from tokcomp.report.study import pareto_front, read_study

    try:
        rows = read_study(folder).rows
    except ConfigurationError as error:  # all failed; what was wrong with each is told next
        console.print(str(error), style="yellow", markup=False, highlight=False, soft_wrap=True)
        return
    console.print(f"Pareto front, accuracy against {cost}:", highlight=False)
    console.print(runs_table([rows[number] for number in pareto_front(rows, cost)]))


def _verdict(console: Console, found: Searched, folder: Path) -> int:
    for line, error in list(found.failed.items())[:10]:
        console.print(f"failed: {line}: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{found.trials} trials, {len(found.failed)} failed; `tokcomp report {folder}` tells more",
                  highlight=False, soft_wrap=True)  # fmt: skip
    return SOME_FAILED if found.failed else 0
