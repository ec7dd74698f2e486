"""The strategies of all stages or of one, or the options of another config group.

examples:
  tokcomp list
  tokcomp list vision
  tokcomp list preset
  tokcomp list models    # the families that were tested, and with how many strategies"""

from __future__ import annotations

import argparse
import re

from tokcomp.errors import ConfigurationError, suggest

__all__ = ["GROUPS", "add_arguments", "execute"]

STAGES = ("vision", "prefill", "cache")
GROUPS = (*STAGES, "models", "preset", "model", "benchmark", "experiment")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("group", nargs="?", metavar="STAGE", help=f"one of: {', '.join(GROUPS)}")


def execute(options: argparse.Namespace) -> int:
    from rich.console import Console

    if options.group is not None and options.group not in GROUPS:
        raise ConfigurationError(
            f"unknown stage '{options.group}'{suggest(options.group, GROUPS)} known: {', '.join(GROUPS)}"
        )
    console = Console()
    for group in STAGES if options.group is None else (options.group,):
        console.print(_families() if group == "models" else _strategies(group) if group in STAGES else _options(group))
    if options.group == "models":
        console.print("A cell: with how many strategies of how many a way of use works; docs/support.md says which, and why not.",
                      highlight=False)  # fmt: skip
    if options.group is None:
        console.print(
            "`tokcomp show STAGE/NAME` tells more of one; `tokcomp list preset` names ready-made mixes.",
            highlight=False,
        )
    return 0


def _strategies(stage: str) -> object:
    from rich.markup import escape
    from rich.table import Table

    from tokcomp import __version__, catalog

    table = Table(title=f"{stage}=...", title_justify="left", caption=f"built-in: tokcomp {__version__}",
                  caption_justify="left")  # fmt: skip
    for column in ("name", "what it does", "needs", "arXiv", "from"):
        table.add_column(column, overflow="fold")
    for one in catalog.entries(stage):
        table.add_row(
            escape(one.name), escape(one.summary), one.needs or "-", escape(_brief(one.paper)), escape(one.origin)
        )
    table.add_row("none", "The stage passes everything through.", "-", "-", "built-in")
    return table


def _brief(paper: str) -> str:
    """Where to find the paper; `tokcomp show` has its title and venue."""
    number = re.search(r"arXiv (\d{4}\.\d{4,5})", paper)
    return number.group(1) if number else paper or "-"


def _families() -> object:
    from rich.table import Table

    from tokcomp.models.support import matrix, overview

    table = Table(title="tested families", title_justify="left")
    table.add_column("family", no_wrap=True)
    table.add_column("class", overflow="fold")
    for way in matrix()["ways"]:
        table.add_column(way, justify="right")
    for name, cls, counts in overview():
        cells = [f"{yes}/{total}" if total else "-" for yes, total in counts.values()]
        table.add_row(name, cls, *cells)
    return table


def _options(group: str) -> object:
    from rich.table import Table

    from tokcomp.experiment.paths import option_file, option_names

    table = Table(title=f"{group}=...", title_justify="left")
    table.add_column("name")
    table.add_column("what it is", overflow="fold")
    for name in option_names(group):
        comments = [
            line for line in option_file(group, name).read_text(encoding="utf-8").splitlines() if line.startswith("# ")
        ]
        table.add_row(name, next((line[2:] for line in comments if "@package" not in line), ""))
    return table
