"""Every code block of the README and of the site runs, page by page, from top to bottom, or says why not and is checked."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.docs import shell
from tests.docs.blocks import LANGUAGES, PAGES, Block, blocks, name_of, of_page
from tests.plugins_in_a_folder import installing
from tokcomp.registry import REGISTRIES

READERS = {"yaml": yaml.safe_load, "toml": tomllib.loads, "json": json.loads}


@pytest.fixture(autouse=True)
def _registries_as_before() -> Iterator[None]:
    """Pages register strategies of their own; no other test is to see them."""
    before = {stage: dict(registry._classes) for stage, registry in REGISTRIES.items() if len(registry)}
    yield
    for stage, registry in REGISTRIES.items():
        registry._classes = before[stage]


def run(page: Path, block: Block, names: dict[str, object]) -> None:
    """One block, or as much of it as can be checked."""
    if block.language == "python":
        # Lines are kept, so that a failure points into the page.
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        if block.reason is None:
            exec(code, names)
    elif block.language == "sh":
        (shell.check if block.reason else shell.run)(block.code)
    elif block.language in READERS:
        READERS[block.language](block.code)


def _parameters() -> Iterator[object]:
    for page in PAGES:
        found = [block for block in of_page(page) if block.language != "text"]
        # Pages that run models by the command line take more than a few seconds.
        long = any(block.language == "sh" and block.reason is None for block in found)
        if found:
            yield pytest.param(page, id=name_of(page), marks=[pytest.mark.slow] if long else [])


@pytest.mark.parametrize("page", list(_parameters()))
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shell.fixtures(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    with installing(tmp_path, monkeypatch):  # modules that a page writes and imports are forgotten afterwards
        for block in of_page(page):
            try:
                run(page, block, names)
            except Exception as error:
                error.add_note(f"in the block at {name_of(page)}:{block.line}")
                raise


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_has_a_language(page: Path) -> None:
    wrong = [block.line for block in of_page(page) if block.language not in LANGUAGES]
    assert not wrong, f"{name_of(page)}: blocks at {wrong} need one of {sorted(LANGUAGES)} after their fence"


def test_blocks_are_found() -> None:
    text = (
        "```python\na = 1\n```\n\n<!-- not run: no network -->\n```sh\nb\n```\n\n- a list\n\n  ```yaml\n  c: 1\n  ```\n\n"
        "text\n\n    indented\n\n<!-- not run: too far away -->\n\n```text\nd\n```\n"
    )
    assert blocks(text) == [
        Block(2, "python", "a = 1\n", None),
        Block(7, "sh", "b\n", "no network"),
        Block(13, "yaml", "c: 1\n", None),
        Block(19, "", "indented\n", None),
        Block(23, "text", "d\n", None),
    ]


def test_commands_are_read() -> None:
    code = "A=1 tokcomp run vision=tome \\\n  'x.r=range(1,3)'  # said\n\npython -m tokcomp list | head -3\n"
    read = list(shell.commands(code))
    assert read == [
        ["tokcomp", "run", "vision=tome", "x.r=range(1,3)"],
        ["python", "-m", "tokcomp", "list"],
        ["head", "-3"],
    ]
    assert [shell.tokcomp_words(words) for words in read] == [["run", "vision=tome", "x.r=range(1,3)"], ["list"], None]
    assert shell.smaller(["run", "benchmark.samples=500"])[1:] == [f"{k}={v}" for k, v in shell.SMALLER.items()]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("tokcomp run vision=tommy", "tome"),
        ("tokcomp run vision=tome vision.rr=3", "did you mean 'r'"),
        ("tokcomp sweep vision=tome,nome", "nome"),
        ("tokcomp fly", "no command"),
        ("make love", "love"),
        ("pip install 'tokcomp[everything]'", "everything"),
        ("python -m tokcomp.nothing", "no module"),
        ("python docs/nothing.py --all", "no file"),
        ("tokcomp run 'vision=tome", "No closing quotation"),
    ],
)
def test_a_wrong_line_that_is_not_run_is_seen(code: str, said: str) -> None:
    with pytest.raises(Exception, match=said):
        shell.check(code)


def test_what_cannot_run_needs_a_mark() -> None:
    with pytest.raises(shell.CannotRunError, match="curl"):
        shell.run("curl https://example.org")


def test_few_python_blocks_are_not_run() -> None:
    every = [block for page in PAGES for block in of_page(page) if block.language == "python"]
    assert sum(block.reason is not None for block in every) <= 8
    assert sum(block.reason is None for block in every) >= 20
