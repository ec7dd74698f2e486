"""One strategy: what it does, its fields with defaults and bounds, its paper and its needs.

examples:
  tokcomp show vision/mustdrop"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tokcomp.errors import ConfigurationError, UnknownStrategyError

if TYPE_CHECKING:
    from tokcomp.catalog import Entry

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "strategy", metavar="STAGE/NAME", help="such as vision/mustdrop, or vision/my_pkg.my_idea:MyIdea"
    )


def execute(options: argparse.Namespace) -> int:
    from rich.console import Console

    stage, name, entry = _found(options.strategy)
    console = Console()
    console.print(f"{stage}={name}", style="bold", highlight=False)
    console.print(entry.text, highlight=False, markup=False)
    console.print(_settings(entry))
    console.print(f"paper: {entry.paper or '-'}", highlight=False, markup=False)
    console.print(f"needs: {entry.needs or 'nothing beyond the tokens'}", highlight=False)
    if entry.without_cls:
        console.print(f"without a CLS token: {entry.without_cls}", highlight=False)
    if entry.origin != "built-in":
        console.print(f"from: {entry.origin}", highlight=False, markup=False)
    return 0


def _found(given: str) -> tuple[str, str, Entry]:
    from tokcomp import catalog
    from tokcomp.plugins import is_path

    stage, _, name = given.partition("/")
    if not name:
        holding = [known for known in catalog.STAGES if stage in catalog.names(known)]
        hint = f"; did you mean {' or '.join(f'{known}/{stage}' for known in holding)}?" if holding else ""
        raise ConfigurationError(f"give STAGE/NAME, such as vision/mustdrop, not '{given}'{hint}")
    if stage not in catalog.STAGES:
        raise ConfigurationError(f"unknown stage '{stage}': known are {', '.join(catalog.STAGES)}")
    if is_path(name):
        from tokcomp.catalog.ask import ask
        from tokcomp.registry import REGISTRIES

        return stage, name, ask(stage, name, REGISTRIES[stage].at(name))
    entry = catalog.entry(stage, name)
    if entry is None:
        raise UnknownStrategyError(stage, name, catalog.names(stage))
    return stage, name, entry


def _settings(entry: Entry) -> object:
    from rich.table import Table

    table = Table(title="fields", title_justify="left")
    for column in ("field", "type", "default", "meaning"):
        table.add_column(column, overflow="fold", no_wrap=column == "field")
    for setting in entry.settings:
        table.add_row(setting.name, setting.type, setting.default, setting.meaning)
    return table
