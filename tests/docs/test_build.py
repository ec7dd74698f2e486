"""The site builds without a warning, has its pages, and asks no other host for anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.blocks import ROOT
from tokcomp import __version__
from tokcomp.registry import REGISTRIES

pytest.importorskip("material", reason="the site needs the extra 'docs' of tokcomp")
pytestmark = pytest.mark.slow

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# What a browser fetches on its own; <a href> is followed by the reader, canonical and edit links by nobody.
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
LOADING_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload", "manifest"}


class Loads(HTMLParser):
    """Collects the addresses that a page loads, those that it links to, and the anchors that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in LOADS and LOADS[tag] in given:
            self.found.append(given[LOADS[tag]])
        elif tag == "link" and LOADING_LINKS & set(given.get("rel", "").split()):
            self.found.append(given.get("href", ""))


def read(html: str) -> Loads:
    parser = Loads()
    parser.feed(html)
    return parser


def loads(html: str) -> list[str]:
    return read(html).found


def broken(site: Path, parsed: dict[Path, Loads]) -> list[str]:
    """Internal links that lead nowhere, as `page -> link`."""
    found = []
    for path, page in parsed.items():
        for link in page.links:
            parts = urlsplit(link)
            if outside(link) or parts.scheme:
                continue
            way = unquote(parts.path)
            target = site / way.lstrip("/") if way.startswith("/") else path.parent / way if way else path
            target = (target / "index.html" if target.is_dir() else target).resolve()
            missing = not target.is_file()
            anchored = parts.fragment and target in parsed and unquote(parts.fragment) not in parsed[target].anchors
            if missing or (anchored and parts.fragment != "__skip"):
                found.append(f"{path.relative_to(site)} -> {link}")
    return found


def outside(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme not in ("", "data")


@contextmanager
def served(site: Path) -> Iterator[str]:
    """The site on a port of this machine: a search worker is not started from files."""
    handler = partial(Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    """Says nothing of what it serves."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


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


def test_every_internal_link_and_anchor_leads_somewhere(site: Path) -> None:
    parsed = {path.resolve(): read(html) for _, path, html in pages(site)}
    assert broken(site.resolve(), parsed) == []
    assert sum(len(page.links) for page in parsed.values()) > 1000


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "index.html").write_text('<h1 id="there">x</h1>')
    html = '<a href="a/#there"></a><a href="a/#gone"></a><a href="b/"></a><a href="#no"></a><a href="https://x.example/#y"></a>'
    (tmp_path / "index.html").write_text(html)
    parsed = {path.resolve(): read(text) for _, path, text in pages(tmp_path)}
    assert broken(tmp_path.resolve(), parsed) == [f"index.html -> {link}" for link in ("a/#gone", "b/", "#no")]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (apt-get install chromium)")
def test_a_browser_asks_nobody_else_and_finds_words(site: Path) -> None:
    """Pages, styles, scripts and the search worker; and no page is wider than a narrow screen."""
    with served(site) as address, browser() as opened:
        page = opened.new_page(viewport={"width": 400, "height": 800}, color_scheme="dark")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        for name in (
            "",
            "how-it-works/",
            "strategies/",
            "library/",
            "support/",
            "notebooks/token_anatomy/",
            "reference/",
        ):
            page.goto(f"{address}/{name}")
            page.wait_for_load_state("networkidle")
            width = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert width <= 0, f"{name} is {width} pixels wider than the screen"
            assert page.evaluate("document.title").endswith(f"tokcomp {__version__}")
        page.locator("label[for=__search]").first.click()
        page.locator("input[name=query]").press_sequentially("equivalent tokens")
        page.locator(".md-search-result__item").first.wait_for(timeout=20_000)
        assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]


def test_no_mark_is_left_unfilled(site: Path) -> None:
    for name, _, html in pages(site):
        assert "<!-- generated:" not in html, name
        assert "--8&lt;--" not in html, name


def test_an_outside_load_is_seen() -> None:
    html = '<script src="https://a.example/x.js"></script><img src="//b.example/i.png"><link rel="stylesheet" href="c.css">'
    assert [outside(address) for address in loads(html)] == [True, True, False]
    assert loads('<a href="https://a.example">x</a><link rel="canonical" href="https://a.example">') == []
