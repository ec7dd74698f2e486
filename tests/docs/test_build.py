"""The site builds without a warning, has its pages, and asks no other host for anything."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.blocks import ROOT
from tokcomp.registry import REGISTRIES

pytest.importorskip("material", reason="the site needs the extra 'docs' of tokcomp")
pytestmark = pytest.mark.slow

# What a browser fetches on its own; <a href> is followed by the reader, canonical and edit links by nobody.
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
LOADING_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload", "manifest"}


class Loads(HTMLParser):
    """Collects the addresses that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag in LOADS and LOADS[tag] in given:
            self.found.append(given[LOADS[tag]])
        elif tag == "link" and LOADING_LINKS & set(given.get("rel", "").split()):
            self.found.append(given.get("href", ""))


def loads(html: str) -> list[str]:
    parser = Loads()
    parser.feed(html)
    return parser.found


def outside(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme not in ("", "data")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def pages(site: Path) -> Iterator[tuple[str, Path, str]]:
    for path in sorted(site.rglob("*.html")):
        yield str(path.relative_to(site)), path, path.read_text(encoding="utf-8")


def test_every_page_is_there(site: Path) -> None:
    sources = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    assert {path.parent.name for path in site.glob("*/index.html")} >= sources
    for stage, registry in REGISTRIES.items():
        assert all((site / "strategies" / f"{stage}-{name}" / "index.html").is_file() for name in registry)


def test_no_page_loads_from_another_host(site: Path) -> None:
    names = [name for name, _, _ in pages(site)]
    assert "index.html" in names
    assert not {name: far for name, _, html in pages(site) if (far := [to for to in loads(html) if outside(to)])}
    styles = [path for path in site.rglob("*.css") if "url(http" in path.read_text() or "url(//" in path.read_text()]
    assert not styles


def test_what_a_page_loads_is_there(site: Path) -> None:
    for name, path, html in pages(site):
        found = loads(html)
        assert found, f"{name} loads no style"
        for address in (unquote(urlsplit(to).path) for to in found if not to.startswith("data:")):
            target = site / address.lstrip("/") if address.startswith("/") else path.parent / address
            assert target.exists(), f"{name} loads {address}"


def test_no_mark_is_left_unfilled(site: Path) -> None:
    for name, _, html in pages(site):
        assert "<!-- generated:" not in html, name
        assert "--8&lt;--" not in html, name


def test_an_outside_load_is_seen() -> None:
    html = '<script src="https://a.example/x.js"></script><img src="//b.example/i.png"><link rel="stylesheet" href="c.css">'
    assert [outside(address) for address in loads(html)] == [True, True, False]
    assert loads('<a href="https://a.example">x</a><link rel="canonical" href="https://a.example">') == []
