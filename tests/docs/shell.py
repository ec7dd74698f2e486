"""Shell blocks of the documentation: `tokcomp …` runs in this process on few questions, the rest is checked.

What is smaller than on the page: 4 questions (`benchmark.samples`), nothing repeated for its time (`measure.repeats=1`), 2
trials of a search, 3 calibration questions (10 where nothing else is run), no pictures on the pages of reports.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

from tests.docs.blocks import ROOT
from tokcomp.cli.main import COMMANDS, main

SMALLER = {"benchmark.samples": "4", "measure.repeats": "1", "measure.memory": "false", "budget.samples": "3"}
_SIZED = {"run", "sweep", "search", "calibrate"}


class CannotRunError(AssertionError):
    """A block that needs a mark, or another line."""


def commands(code: str) -> Iterator[list[str]]:
    """The commands of a block, as lists of words; comments go, lines that end with a backslash go on."""
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            if set(word) <= set("|&;"):
                yield words
                words = []
            else:
                words.append(word)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if words:
            yield words


def tokcomp_words(words: Sequence[str]) -> list[str] | None:
    """What stands after `tokcomp`, or None for another command."""
    if words[:1] == ["tokcomp"]:
        return list(words[1:])
    if words[:1] and re.fullmatch(r"(\S*/)?python3?", words[0]) and list(words[1:3]) == ["-m", "tokcomp"]:
        return list(words[3:])
    return None


def smaller(words: Sequence[str]) -> list[str]:
    """The same command on few questions."""
    if not words or words[0] not in _SIZED:
        return [*words, "--no-pictures"] if words[:1] == ["report"] and "--compare" not in words else list(words)
    if words[0] == "search":
        words = [*words[: words.index("--trials") + 1], "2", *words[words.index("--trials") + 2 :]]
    kept = [word for word in words if word.partition("=")[0] not in SMALLER]
    given = SMALLER.items() if words[0] != "calibrate" else [("budget.samples", "10")]
    return [kept[0], *(f"{name}={value}" for name, value in given), *kept[1:]]  # before options, as argparse has it


def run(code: str) -> None:
    """Run every command of a block where it stands; all end with status 0."""
    for words in commands(code):
        told = tokcomp_words(words)
        if told is None:
            raise CannotRunError(
                f"`{shlex.join(words)}` is not run by tests: write <!-- not run: REASON --> above its block"
            )
        status = main(smaller(told))
        assert status == 0, f"`{shlex.join(words)}` ended with status {status}"


def check(code: str) -> None:
    """Whether the commands of a block that is not run are well formed."""
    for words in commands(code):
        told = tokcomp_words(words)
        if told is not None:
            _check_tokcomp(tuple(told))
            continue
        name, rest = words[0], words[1:]
        checker = _CHECKS.get("python" if re.fullmatch(r"(\S*/)?python3?", name) else name)
        if checker is not None:
            checker(rest)


@cache
def _check_tokcomp(words: tuple[str, ...]) -> None:
    assert words[0] in COMMANDS, f"tokcomp {words[0]} is no command"
    elsewhere = ("-", "device=")  # options, and a device that this machine may not have
    overrides = [word for word in words[1:] if "=" in word and not word.startswith(elsewhere)]
    if words[0] in ("run", "view", "sweep"):
        from tokcomp.experiment.axes import read_axes, refuse_wrong

        refuse_wrong(read_axes(overrides))
    elif words[0] == "search":
        from tokcomp.experiment.axes import parsed_overrides

        parsed_overrides(overrides)
    elif words[0] == "flops":
        from tokcomp.experiment.compose import compose

        compose(overrides, config_name="flops")


def _check_make(words: Sequence[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    unknown = {word for word in words if "=" not in word} - targets
    assert not unknown, f"the Makefile has no {unknown}"


def _check_pip(words: Sequence[str]) -> None:
    for word in words:
        match = re.fullmatch(r"(?:tokcomp|\.)\[([\w,]+)\]", word)
        assert match is None or set(match[1].split(",")) <= _extras(), f"no such extra: {word}"


def _check_python(words: Sequence[str]) -> None:
    if words[:2] == ["-m", "pip"]:
        _check_pip(words[2:])
    elif words[:1] == ["-m"]:
        assert importlib.util.find_spec(words[1]) is not None, f"no module {words[1]}"
    elif words and words[0].endswith(".py"):
        assert (ROOT / words[0]).is_file(), f"no file {words[0]}"


_CHECKS: dict[str, Callable[[Sequence[str]], None]] = {
    "make": _check_make,
    "pip": _check_pip,
    "python": _check_python,
}


@cache
def _extras() -> set[str]:
    read = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return set(read["project"]["optional-dependencies"])


def fixtures(folder: Path) -> None:
    """What the pages take as given: a picture of one's own, and the one that lies in the repository."""
    picture = (ROOT / "docs" / "images" / "scene.png").read_bytes()
    for path in (folder / "photo.png", folder / "docs" / "images" / "scene.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
