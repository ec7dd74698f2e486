"""Completion, asked directly and by pressing the tab key in real shells."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tokcomp
from tokcomp import catalog
from tokcomp.cli.completing import candidates
from tokcomp.cli.main import COMMANDS, main

ROOT = Path(tokcomp.__file__).parent.parent


def after(line: str) -> list[str]:
    return candidates(line.split(" "), tuple(COMMANDS))


@pytest.mark.parametrize(("line", "some"), [
    ("", ["run ", "sweep ", "new ", "--help "]),
    ("comp", ["completion "]),
    ("run ", ["vision=", "preset=", "benchmark.", "measure.", "seed="]),
    ("run vision=must", ["vision=mustdrop "]),
    ("run prefill=mustdrop-", ["prefill=mustdrop-64 "]),
    ("run vision=mustdrop vision.", ["vision.key_ratio=", "vision.order="]),
    ("run prefill=mustdrop-64 prefill.glo", ["prefill.global_threshold="]),
    ("run preset=mustdrop-64 prefill.", ["prefill.layers="]),
    ("run vision=mustdrop vision.order=", ["vision.order=image ", "vision.order=published "]),
    ("run model=llava-1.5", ["model=llava-1.5-7b "]),
    ("run model.pa", ["model.path="]),
    ("run benchmark=scenes-hard benchmark.k", ["benchmark.kinds="]),
    ("run budget.f", ["budget.flops="]),
    ("run dtype=b", ["dtype=bfloat16 "]),
    ("run --c", ["--cfg "]),
    ("sweep vision=none,tome,to", ["vision=none,tome,tome"]),
    ("search vision=tome,fastervlm vision.tome.in", ["vision.tome.inflect="]),
    ("flops assume.", ["assume.vision="]),
    ("show vision/di", ["vision/divprune "]),
    ("show ", ["vision/", "prefill/", "cache/"]),
    ("list mod", ["model ", "models "]),
    ("new ca", ["cache "]),
    ("report --o", ["--out "]),
    ("completion z", ["zsh "]),
])  # fmt: skip
def test_what_may_come_next(line: str, some: list[str]) -> None:
    found = after(line)
    assert set(some) <= set(found)
    word = line.rpartition(" ")[2]
    assert all(each.startswith(word) for each in found)


NOTHING = ["run vision.", "run vision=none vision.", "run vision=nosuch vision.", "nosuch a", "run preset=x prefill.",
           "show vision/nosuch"]  # fmt: skip


@pytest.mark.parametrize("line", NOTHING)
def test_where_nothing_can_come(line: str) -> None:
    assert after(line) == []


def test_strategies_and_all_their_fields_are_offered() -> None:
    for stage in catalog.STAGES:
        assert {f"{stage}={name} " for name in catalog.names(stage)} < set(after(f"run {stage}="))
        for one in catalog.entries(stage)[::4]:
            offered = set(after(f"run {stage}={one.name} {stage}."))
            assert offered == {f"{stage}.{setting.name}=" for setting in one.settings}


def test_only_what_the_shell_does_not_have_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash", "--line", "tokcomp run vision=tom", "--breaks", " \n=:"]) == 0
    assert capsys.readouterr().out == "tome \n"
    assert main(["completion", "bash", "--line", "tokcomp run 'vision=tom"]) == 0
    assert capsys.readouterr().out == ""


def test_it_imports_nothing_heavy(tmp_path: Path) -> None:
    line = "tokcomp run vision=mustdrop vision."
    code = f"import sys; from tokcomp.cli.main import main; main(['completion', 'zsh', '--line', {line!r}]); print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path,
                           capture_output=True, text=True, check=True)  # fmt: skip
    assert "vision.window=" in ended.stdout
    assert not {"torch", "hydra", "omegaconf", "pydantic", "rich", "yaml"} & set(ended.stdout.splitlines()[-1].split())


# -- in real shells ------------------------------------------------------------------------------------------------------


_START = {
    "bash": "PS1='ready> '\nbind 'set enable-bracketed-paste off'\n",
    "zsh": "PS1='ready> '\nunset zle_bracketed_paste; unsetopt prompt_cr prompt_sp\nautoload -Uz compinit; compinit -u\n",
}


class Shell:
    """An interactive shell behind a terminal, with `tokcomp` on its path and its completion installed as documented."""

    def __init__(self, name: str, folder: Path) -> None:
        program = folder / "bin" / "tokcomp"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tokcomp "$@"\n')
        program.chmod(0o755)
        environment = {
            "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HOME": str(folder),
            "ZDOTDIR": str(folder), "TERM": "dumb", "COLUMNS": "200", "LC_ALL": "C.UTF-8",
            "XDG_CACHE_HOME": str(folder / "cache"),
        }  # fmt: skip
        start = folder / (".bashrc" if name == "bash" else ".zshrc")
        start.write_text(_START[name])
        subprocess.run(f"tokcomp completion {name} >> {start}", shell=True, env=environment, check=True)
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execvpe(name, [name, "-i"], environment)
        self.read("ready> ")

    def read(self, until: str, seconds: float = 60.0) -> str:
        """What the shell writes, up to ``until``."""
        told, ends = "", time.monotonic() + seconds
        while not re.search(until, told):
            if not select.select([self.terminal], [], [], max(0.0, ends - time.monotonic()))[0]:
                raise AssertionError(f"{until!r} did not come: {told!r}")
            told += os.read(self.terminal, 4096).decode(errors="replace").replace("\a", "")
        return told

    def type(self, text: str, until: str) -> str:
        os.write(self.terminal, text.encode())
        return self.read(until)

    def close(self) -> None:
        os.close(self.terminal)
        os.waitpid(self.pid, 0)


@pytest.mark.parametrize("name", ["bash", "zsh"])
def test_the_tab_key_completes(name: str, tmp_path: Path) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed here")
    shell = Shell(name, tmp_path)
    try:
        shell.type("tokcomp ru\t", "run ")
        shell.type("vision=fasterv\t", "fastervlm ")
        shell.type("prefill=mustdrop-6\t", "64 ")
        shell.type("vision.keep_r\t", "keep_ratio=")
        shell.type("0.5 prefill.glob\t", "global_threshold=")
        shell.type("\x15tokcomp show cache/snap\t", "cache/snapkv ")
    finally:
        shell.close()
