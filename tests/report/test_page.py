"""The page of a study, driven in a real browser: sort, filter, hover, open a run; nothing is fetched, nothing fails."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.stores import grid, write_store
from tokcomp.cli.main import main

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = write_store(tmp_path_factory.mktemp("store"), grid())
    assert main(["report", str(store), "--no-pictures"]) == 0
    return store / "report" / "page.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, page_file: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    width = getattr(request, "param", 1280)
    context = browser.new_context(viewport={"width": width, "height": 900})
    tab = context.new_page()
    troubles: list[str] = []
    tab.on("console", lambda message: troubles.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on(
        "request",
        lambda asked: None if asked.url.startswith(("file:", "data:", "blob:")) else troubles.append(asked.url),
    )
    tab.goto(page_file.as_uri())
    yield tab
    context.close()
    assert not troubles


def column(page: Any, number: int) -> list[str]:
    return page.locator(f"#runs tbody tr td:nth-child({number})").all_inner_texts()


def test_a_click_on_a_head_sorts(page: Any) -> None:
    page.get_by_role("button", name="accuracy").click()
    values = [float(text.split()[0]) for text in column(page, 4)]
    assert len(values) == 27
    assert values == sorted(values)
    page.get_by_role("button", name="accuracy").click()
    assert [float(text.split()[0]) for text in column(page, 4)] == sorted(values, reverse=True)


def test_filters_and_search_leave_what_they_say(page: Any) -> None:
    page.locator("#filter-vision").select_option("tome")
    assert set(column(page, 1)) == {"tome"}
    assert page.locator("#runs tbody tr").count() == 9
    page.locator("#search").fill("h2o fastv")
    assert page.locator("#runs tbody tr").count() == 1
    assert "1 of 27 runs" in page.locator("#count").inner_text()


def test_a_point_tells_its_run(page: Any) -> None:
    point = page.locator("#plot .scatterlayer .point").first
    point.hover(force=True)
    page.wait_for_selector("#plot .hoverlayer text")
    assert re.search(r"\d+\.\d % at", page.locator("#plot .hoverlayer").text_content())


def test_the_legend_tells_colours_and_marks(page: Any) -> None:
    told = page.locator("#plot .legend .legendtext").all_text_contents()
    assert {"vision=tome", "prefill=fastv", "prefill=mustdrop", "prefill=none"} <= set(told)


def test_another_cost_redraws_the_axis(page: Any) -> None:
    page.locator("#cost").select_option("kv_bytes")
    page.wait_for_function("document.querySelector('#plot .xtitle').textContent.includes('KV cache')")


def test_a_run_opens_with_its_answers_and_its_command(page: Any) -> None:
    page.locator("#runs tbody tr").first.click()
    page.wait_for_selector("#answers")
    assert page.locator("#run pre").inner_text().startswith("tokcomp run vision=")
    assert page.locator("#answers tbody tr").count() == 30
    page.locator("#only").check()
    shown = page.locator("#answers tbody tr").count()
    assert 0 < shown < 30
    assert page.locator("#answers td.worse").count() == shown
    page.get_by_text("← all runs").click()
    assert page.locator("#runs tbody tr").count() == 27


@pytest.mark.parametrize("page", [400, 1280], indirect=True)
def test_nothing_is_wider_than_the_window(page: Any) -> None:
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"]
    box = page.locator("#plot .main-svg").first.bounding_box()
    assert box["x"] + box["width"] <= page.viewport_size["width"]
