"""``tokcomp``: finds the command, and turns what a user did wrong into one line and exit status 2."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from tokcomp import __version__
from tokcomp.errors import TokcompError, suggest

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "run": "answer a benchmark with the dense and the compressed model, and compare",
    "sweep": "every combination of several choices, into a store that survives anything",
    "calibrate": "the setting at which a strategy meets a budget, as an option file",
    "search": "the Pareto front of accuracy against cost, over strategies and their settings",
    "report": "what a sweep found: tables, figures, statistics and a page that works offline",
    "check": "hold a strategy against the contract, and say what it gets wrong",
    "list": "the strategies, benchmarks, models and presets",
    "show": "one strategy: its fields, defaults, paper and needs",
    "new": "a strategy of your own that works from the start, with options and tests",
    "view": "a picture of what each stage kept, merged and dropped of an image",
    "flops": "what a pipeline saves on a model, counted without weights",
    "completion": "completion with the tab key, for bash and zsh",
}
"""Commands and what they do; each is a module of this package with ``add_arguments`` and ``execute``."""

USER_ERROR = 2


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise _UsageError(message)


class _UsageError(TokcompError):
    """The command line cannot be read."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 2 where the user has to change something.

    Other exceptions than :class:`TokcompError` are bugs: they keep their traceback.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_usual, warnings.formatwarning = warnings.formatwarning, _one_line
    try:
        return _dispatch(given)
    except TokcompError as error:
        print(f"tokcomp: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:  # the reader of a pipe (`tokcomp list | head`) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the last flush at exit must not fail again
        return 0
    except KeyboardInterrupt:
        print("tokcomp: interrupted", file=sys.stderr)
        return 130
    finally:
        warnings.formatwarning = as_usual


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as a user of the command line reads it: no file, no line of source."""
    return f"tokcomp: warning: {' '.join(str(message).split())}\n"


def _dispatch(given: list[str]) -> int:
    name = given[0] if given else "--help"
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name == "--version":
        print(f"tokcomp {__version__}")
        return 0
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        hint = suggest(name, (*COMMANDS, "--help", "--version"))
        raise _UsageError(f"unknown {kind} '{name}'{hint} known: {', '.join(COMMANDS)}")
    command = importlib.import_module(f"tokcomp.cli.{name}")
    parser = _Parser(
        prog=f"tokcomp {name}", description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_arguments(parser)
    try:
        options = parser.parse_args(given[1:])
    except SystemExit as ended:  # --help prints and exits
        return int(ended.code or 0)
    return int(command.execute(options))


def _overview() -> str:
    lines = ["usage: tokcomp COMMAND ...", "", "Vision-token compression for vision-language models.", "", "commands:"]
    lines += [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    return "\n".join([*lines, "", "`tokcomp COMMAND --help` tells more; `tokcomp --version` tells the version."])


if __name__ == "__main__":
    sys.exit(main())
