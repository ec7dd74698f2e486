"""What a sweep found: a table here, and figures, tables for papers and a page that works offline in DIR/report/.

  tokcomp report sweeps/all
  tokcomp report sweeps/all --baseline vision=random --out paper/
  tokcomp report --compare sweeps/before sweeps/after

Intervals and tests are paired: every run is compared with the dense model (or the baseline run) on the same questions,
by bootstrap and sign flips, corrected for the number of runs (Holm)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tokcomp.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console

    from tokcomp.report.study import Study

__all__ = ["add_arguments", "execute"]

_SHOWN = 40
_DRAWN = 40  # runs up to which each one's picture is drawn unless told otherwise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", nargs="?", type=Path, metavar="DIR", help="folder of a sweep (hydra.sweep.dir)")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="what changed from one to the other")
    parser.add_argument("--baseline", metavar="RUN", help="key or settings of the run that others are compared with")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where it is written; DIR/report unless given")
    parser.add_argument("--pictures", action=argparse.BooleanOptionalAction, default=None,
                        help=f"draw what each run keeps of an image (default: up to {_DRAWN} runs)")  # fmt: skip


def execute(options: argparse.Namespace) -> int:
    from rich.console import Console

    from tokcomp.report.study import read_study

    console = Console()
    if options.compare is not None:
        from tokcomp.report.compare import compare, comparison_table

        before, after = (read_study(folder) for folder in options.compare)
        console.print(comparison_table(compare(before, after)))
        return 0
    if options.store is None:
        raise ConfigurationError("give the folder of a sweep, or --compare A B")
    study = read_study(options.store, baseline=options.baseline)
    _print(console, study)
    written = _write(console, study, options.out or options.store / "report", options.pictures)
    console.print(f"written to {written}: page.html, runs.csv, runs.parquet, runs.tex, figures/", soft_wrap=True,
                  highlight=False)  # fmt: skip
    return 0


def _print(console: Console, study: Study) -> None:
    from tokcomp.report.many import runs_table

    best = sorted(range(len(study.rows)), key=lambda number: -study.rows[number].accuracy)[:_SHOWN]
    rows = study.rows if len(study.rows) <= _SHOWN else [study.rows[number] for number in best]
    console.print(runs_table(rows))
    if study.older:
        left_out = f"{len(study.older)} older records are left out: their configurations were run again by other code"
        console.print(left_out, style="yellow", highlight=False, soft_wrap=True)
    for line in study.unread:
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if len(study.rows) > _SHOWN or study.failed:
        console.print(f"{len(study.rows)} runs, {len(study.failed)} failed; shown: {len(rows)}", highlight=False)


def _write(console: Console, study: Study, folder: Path, pictures: bool | None) -> Path:
    from tokcomp.report.page import write_page
    from tokcomp.report.plots import write_figures

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be written: {error.strerror}: give another --out") from error
    drawn = {}
    if pictures or (pictures is None and len(study.rows) <= _DRAWN):
        from transformers.utils import logging

        from tokcomp.report.pictures import draw_pictures  # models and all that runs them

        logging.disable_progress_bar()
        try:
            drawn = draw_pictures(study.rows, folder / "pictures")
        except ConfigurationError as error:
            if pictures:
                raise
            # A report may be written where the models and their device are not.
            console.print(f"no pictures: {error}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    _write_tables(study, folder)
    write_figures(study, folder / "figures")
    write_page(study, folder / "page.html", drawn)
    return folder


def _write_tables(study: Study, folder: Path) -> None:
    from tokcomp.report.export import flat_rows, write_csv, write_latex, write_parquet

    rows = flat_rows(study)
    write_csv(rows, folder / "runs.csv")
    write_parquet(rows, folder / "runs.parquet")
    write_latex(study, folder / "runs.tex")
