"""The code blocks of the README and of the site: what they are, and which of them say why they are not run.

A page is read by markdown-it. A block names its language; one that cannot be run here has, in the line before it,
``<!-- not run: REASON -->``, and is then checked as far as that goes without running it.

Own, and not a pytest plugin for Markdown: those make one test of each block, which pytest-xdist spreads over its workers,
while the blocks of a page share their names and their folder.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "tokcomp").rglob("MODEL_CARD.md")),
]
LANGUAGES = {"python", "sh", "text", "yaml", "toml", "json"}
"""``text`` is output or a drawing: it is shown as it is."""

_MARK = re.compile(r"<!-- not run: (?P<reason>.+) -->")


class Block(NamedTuple):
    """One block: its first line in the file, its language, its code, and why it is not run."""

    line: int
    language: str
    code: str
    reason: str | None


def blocks(text: str) -> list[Block]:
    """All blocks of a page; those that are indented and not fenced have no language."""
    found: list[Block] = []
    mark: tuple[int, str] | None = None
    for token in MarkdownIt().parse(text):
        if token.map is None:
            continue
        first, end = token.map
        if token.type == "html_block":
            lines = token.content.rstrip().splitlines()
            match = _MARK.fullmatch(lines[-1].strip()) if lines else None
            mark = (end, match["reason"]) if match else None
        elif token.type in ("fence", "code_block"):
            reason = mark[1] if mark is not None and mark[0] == first else None
            found.append(Block(first + 2, token.info.split(" ")[0], token.content, reason))
    return found


@cache
def of_page(page: Path) -> list[Block]:
    return blocks(page.read_text(encoding="utf-8"))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))
