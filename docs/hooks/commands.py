"""mkdocs hook: the page of the command line, from the commands' own help, and of the settings, from their file."""

from __future__ import annotations

import argparse
import importlib
import inspect
import textwrap

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from tokcomp.cli.main import COMMANDS
from tokcomp.experiment.paths import config_dir

PAGE = "commands.md"
WIDTH = 92


def on_files(files: Files, config: MkDocsConfig) -> Files:
    files.append(File.generated(config, PAGE, content=page()))
    return files


def page() -> str:
    """Every command with its help."""
    lines = ["# Command line", "", "`tokcomp COMMAND --help` tells the same. What you did wrong is one line and exit status 2; a "
             "sweep of which runs failed ends with 3.", "", "| command | what it does |", "|---|---|"]  # fmt: skip
    lines += [f"| [`tokcomp {name}`](#tokcomp-{name}) | {text} |" for name, text in COMMANDS.items()]
    for name in COMMANDS:
        lines += ["", f"## tokcomp {name}", "", "```text", help_of(name), "```"]
    settings = (config_dir() / "run.yaml").read_text(encoding="utf-8").rstrip()
    lines += ["", "## Settings", "", "What `run`, `sweep`, `calibrate` and `search` take, with defaults; `tokcomp list` names "
              "the options of the groups, the fields of strategies stand on their [pages](strategies/index.md).", "",
              "```yaml", settings, "```", ""]  # fmt: skip
    return "\n".join(lines)


def help_of(name: str) -> str:
    """What ``tokcomp NAME --help`` prints, at a fixed width."""
    command = importlib.import_module(f"tokcomp.cli.{name}")
    parser = argparse.ArgumentParser(
        prog=f"tokcomp {name}", description=_wrapped(inspect.cleandoc(command.__doc__ or "")),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=WIDTH),
    )  # fmt: skip
    command.add_arguments(parser)
    return parser.format_help().rstrip()


def _wrapped(text: str) -> str:
    """Paragraphs at the page's width; those with indented examples as they are."""
    return "\n\n".join(
        part if any(line.startswith(" ") for line in part.splitlines()) else textwrap.fill(part, WIDTH)
        for part in text.split("\n\n")
    )
