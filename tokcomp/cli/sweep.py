"""Run every combination of several choices, into one store that survives anything.

A comma makes an axis; glob(*) takes all options of a group, range(1,5) numbers. The rest of the line is as in
`tokcomp run`.

  tokcomp sweep vision=none,tome,mustdrop prefill=none,fastv,mustdrop cache=none,h2o,mustdrop
  tokcomp sweep 'vision=glob(*)' benchmark.samples=100 hydra.sweep.dir=sweeps/all
  tokcomp sweep vision=tome vision.r=4,8,12 hydra/launcher=joblib hydra.launcher.n_jobs=2

Every run leaves a record, keyed by its configuration and the code. The same command goes on where it was stopped:
runs that are there are left alone, failed ones are made again. Exit status 3: some runs failed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tokcomp.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from tokcomp.experiment.sweep import Outcome

__all__ = ["add_arguments", "execute"]

SOME_FAILED = 3
_SHOWN = 60  # rows of the table that is printed at the end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", default=[], metavar="name=value,value", help="axes, options, settings")


def execute(options: argparse.Namespace) -> int:
    from rich.console import Console

    from tokcomp.experiment.sweep import sweep

    if not options.overrides:
        raise ConfigurationError("give at least one axis, such as vision=none,tome; one run alone is `tokcomp run`")
    console = Console()
    with _shown(console) as watch:
        outcome = sweep(options.overrides, watch)
    for note in outcome.notes:
        console.print(note, style="yellow", highlight=False, markup=False, soft_wrap=True)
    _print_table(console, outcome)
    return _verdict(console, outcome)


def _print_table(console: Console, outcome: Outcome) -> None:
    from tokcomp.report.many import runs_table
    from tokcomp.report.rows import read_row

    shown = outcome.keys[:_SHOWN]
    rows = [row for key in shown if (row := read_row(outcome.store.folder(key) / "result.json")) is not None]
    if rows:
        console.print(runs_table(rows))
    if len(outcome.keys) > _SHOWN:
        console.print(f"... and {len(outcome.keys) - _SHOWN} more", highlight=False)


def _verdict(console: Console, outcome: Outcome) -> int:
    def say(line: str, style: str | None = None) -> None:
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)

    for key, error in list(outcome.failed.items())[:20]:
        say(f"failed: {key}: {error}", "red")
    if outcome.broken is not None:
        say(f"the launcher gave up: {outcome.broken}", "red")
    left = outcome.size - outcome.ended
    counts = f"{len(outcome.done)} made, {len(outcome.found)} found, {len(outcome.failed)} failed"
    say(counts + (f", {left} not run: the same command goes on with them" if left > 0 else ""))
    say(f"`tokcomp report {outcome.store.root}` tells more")
    return SOME_FAILED if outcome.failed or outcome.broken is not None or left > 0 else 0


@contextmanager
def _shown(console: Console) -> Iterator[Callable[[Outcome], None]]:
    """One bar: runs that ended, those that failed, the time that is left; it comes with the first run."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns: tuple[Any, ...] = (
        TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[failed]} failed"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    checking = console.status("checking the axes")
    bars = Progress(*columns, console=console, speed_estimate_period=600)
    task = bars.add_task("runs", total=None, failed=0)

    def watch(outcome: Outcome) -> None:
        checking.stop()
        bars.start()
        bars.update(task, total=outcome.size, completed=outcome.ended, failed=len(outcome.failed))

    checking.start()
    try:
        yield watch
    finally:
        checking.stop()
        bars.stop()
