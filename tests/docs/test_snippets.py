"""Every Python block of the README and of the site runs, page by page, from top to bottom."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tokcomp.registry import REGISTRIES

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = "<!-- not run: needs a 7B checkpoint -->"
_BLOCK = re.compile(
    r"^(?P<mark><!--[^\n]*-->\n)?(?P<fence>`{3,})python[^\n]*\n(?P<code>.*?)^(?P=fence)$", re.DOTALL | re.MULTILINE
)


class Block(NamedTuple):
    """One block: its first line in the file, its code, and whether it says that it is not run."""

    line: int
    code: str
    skipped: bool


def blocks(text: str) -> list[Block]:
    found = []
    for match in _BLOCK.finditer(text):
        mark = (match["mark"] or "").strip()
        found.append(Block(text.count("\n", 0, match.start("code")) + 1, match["code"], mark == NOT_RUN))
    return found


@pytest.fixture(autouse=True)
def _registries_as_before() -> Iterator[None]:
    """Pages register strategies of their own; no other test is to see them."""
    before = {stage: dict(registry._classes) for stage, registry in REGISTRIES.items() if len(registry)}
    yield
    for stage, registry in REGISTRIES.items():
        registry._classes = before[stage]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page.read_text())], ids=lambda page: page.name)
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(page.read_text()):
        # Lines are kept, so that a failure points into the page.
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        if not block.skipped:
            exec(code, names)


def test_blocks_are_found() -> None:
    text = f"```python\na = 1\n```\n\n{NOT_RUN}\n```python\nb\n```\n```yaml\nc: 1\n```\n"
    assert [(block.line, block.code.strip(), block.skipped) for block in blocks(text)] == [
        (2, "a = 1", False),
        (7, "b", True),
    ]


def test_few_blocks_are_not_run() -> None:
    every = [block for page in PAGES for block in blocks(page.read_text())]
    assert sum(block.skipped for block in every) <= 3
    assert sum(not block.skipped for block in every) >= 10
