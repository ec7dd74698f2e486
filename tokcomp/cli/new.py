"""Begin a strategy: a file of 40 lines that works as it is, its option file, and tests that tell what you got wrong.

  tokcomp new vision my_idea              # my_idea.py, configs/vision/my_idea.yaml and test_my_idea.py, here
  tokcomp check my_idea                   # holds it against the contract of its stage
  tokcomp run vision=my_idea              # from the same folder, nothing else to do
  tokcomp new cache my_policy --package   # a package that can be installed: entry point, options, tests, README

Nothing is overwritten."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stage", metavar="STAGE", help="vision, prefill or cache")
    parser.add_argument("name", metavar="NAME", help="what it is called: my_idea")
    parser.add_argument("--package", action="store_true", help="a package of its own, with an entry point")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where it is written (default: here)")


def execute(options: argparse.Namespace) -> int:
    from tokcomp.scaffold import render, write

    files = render(options.stage, options.name, package=options.package)
    for path in write(files, options.out):
        print(f"written: {path}")
    folder = options.out / next(iter(files)).partition("/")[0] if options.package else options.out
    first = [] if folder == Path() else [f"cd {folder}"]
    then = ["pip install -e .", f"tokcomp check {options.stage}/{options.name}"] if options.package else [
        f"tokcomp check {options.name}"]  # fmt: skip
    print("next:", " && ".join([*first, *then, f"tokcomp run {options.stage}={options.name}"]))
    return 0
