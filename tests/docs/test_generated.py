"""What the site and the README say about strategies and results comes from the code and from records."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml

from tests.docs import shell
from tests.docs.blocks import PAGES, ROOT, blocks, of_page
from tokcomp.cli.main import COMMANDS
from tokcomp.registry import REGISTRIES

STRATEGIES = [(stage, name) for stage, registry in REGISTRIES.items() for name in registry]


def load(path: str) -> ModuleType:
    """A script of the folder ``docs``, which is no package."""
    for folder in (ROOT / "docs", ROOT / "docs" / "hooks"):  # as mkdocs and the scripts themselves have it
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "docs" / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gallery() -> ModuleType:
    pytest.importorskip("mkdocs")
    return load("hooks/strategies.py")


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return load("hooks/tables.py")


@pytest.mark.parametrize(("stage", "name"), STRATEGIES)
def test_a_page_tells_every_field(gallery: ModuleType, stage: str, name: str, tmp_path: Path) -> None:
    cls = REGISTRIES[stage][name]
    page = gallery.strategy_page(stage, name, cls, tmp_path)
    rows = re.findall(r"^\| `(\w+)` \|.*$", page, re.MULTILINE)
    assert rows == list(cls.model_fields)
    for row in re.findall(r"^\| `\w+` \|.*$", page, re.MULTILINE):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", re.sub(r"`[^`]*`", "code", row))[1:-1]]
        assert len(cells) == 4
        assert all(cells), f"an empty cell in {row}"
    assert "Attributes:" not in page
    assert "``" not in page.replace("```", "")
    assert ":class:" not in page
    assert ":func:" not in page
    assert all(signal.value in page for signal in cls.needs)


@pytest.mark.parametrize(("stage", "name"), STRATEGIES)
def test_a_paper_is_linked(gallery: ModuleType, stage: str, name: str, tmp_path: Path) -> None:
    cls = REGISTRIES[stage][name]
    for number in re.findall(r"\d{4}\.\d{5}", cls.paper):
        assert f"(https://arxiv.org/abs/{number})" in gallery.strategy_page(stage, name, cls, tmp_path)


def test_the_overview_lists_all(gallery: ModuleType) -> None:
    page = gallery.overview(ROOT / "docs")
    assert all(f"[`{name}`]({stage}-{name}.md)" in page for stage, name in STRATEGIES)
    presets = {path.stem for path in (ROOT / "configs" / "preset").glob("*.yaml")}
    assert set(re.findall(r"`preset=([^`]+)`", page)) == presets


def test_the_navigation_has_all_pages(gallery: ModuleType) -> None:
    config = gallery.on_config(SimpleNamespace(nav=[{"Start": "index.md"}, {"Strategies": []}]))
    text = json.dumps(config.nav)
    assert all(f"strategies/{stage}-{name}.md" in text for stage, name in STRATEGIES)


def test_the_readme_holds_the_committed_results(tables: ModuleType) -> None:
    """`make results` was run after the last change of a record."""
    generate = load("generate.py")
    entries = tables.read(ROOT / "docs" / "results")
    assert entries
    text = (ROOT / "README.md").read_text()
    for name, table in (
        ("results", tables.comparison(entries)),
        ("budgets", tables.budgets(entries)),
        ("kinds", tables.kinds()),
    ):
        assert f"<!-- {name}:begin -->\n{table}\n<!-- {name}:end -->" in text
    assert generate.view_command() in text
    assert {entry.choice for entry in entries} == {choice for choices in generate.TABLES.values() for choice in choices}


def test_a_record_is_committed_without_what_no_table_needs(tables: ModuleType, tmp_path: Path) -> None:
    entry = tables.read(ROOT / "docs" / "results")[0]
    tables.write(tmp_path, entry)
    assert tables.read(tmp_path) == [entry]
    written = json.loads((tmp_path / f"{entry.name}.json").read_text())["result"]
    assert not written["samples"]
    assert "platform" not in written["environment"]


def test_a_failed_run_is_no_result(tables: ModuleType, tmp_path: Path) -> None:
    entry = tables.read(ROOT / "docs" / "results")[0]
    failed = entry.result.model_copy(
        update={"status": "failed", "dense": None, "compressed": None, "error": "out of luck"}
    )
    tables.write(tmp_path, tables.Entry("a", "presets", "preset=x", "tokcomp run preset=x", failed))
    assert tables.read(tmp_path) == []
    assert tables.comparison([]) == tables.budgets([]) == tables.inside([]) == ""


def test_the_library_has_a_table_and_curves_per_stage(tables: ModuleType, tmp_path: Path) -> None:
    comparison = load("hooks/comparison.py")
    results, images = tmp_path / "docs" / "results" / "library", tmp_path / "docs" / "images"
    assert comparison.library(results) == ""
    first, second = tables.read(ROOT / "docs" / "results")[:2]
    for entry, name in ((first, "vision-tome-25"), (second, "vision-tome-06"), (second, "prefill-random-50")):
        tables.write(results, tables.Entry(name, "library", f"choice of {name}", "tokcomp run", entry.result))
    (results / comparison.REASONS).write_text('{"key": "vision-pool-50", "reason": "it jumps"}\n')
    comparison.draw(results, images)
    page = comparison.library(results)
    accuracy = 100 * second.sides[1].accuracy.overall
    assert f"| `tome` |  | {100 * first.sides[1].accuracy.overall:.1f} [" in page
    assert f"| `random` | {accuracy:.1f} [" in page
    assert "- `vision-pool` at 50 %: it jumps" in page
    for stage in ("vision", "prefill"):
        assert f"](images/library-{stage}.svg)" in page
        assert "equivalent vision tokens" in (images / f"library-{stage}.svg").read_text()
    before = (images / "library-vision.svg").read_bytes()
    comparison.draw(results, images)
    assert (images / "library-vision.svg").read_bytes() == before
    assert "library-cache" not in page


def test_the_committed_reasons_are_the_declared_ones(tmp_path: Path) -> None:
    library, comparison = load("library.py"), load("hooks/comparison.py")
    committed = ROOT / "docs" / "results" / "library" / comparison.REASONS
    stale = {"key": "cache-by_layer-06", "reason": "nobody knows"}
    (tmp_path / comparison.REASONS).write_text(committed.read_text() + json.dumps(stale) + "\n")
    library.renew_reasons(tmp_path)
    assert (tmp_path / comparison.REASONS).read_text() == committed.read_text()


def test_markers_that_are_missing_are_named() -> None:
    generate = load("generate.py")
    assert generate.filled("a <!-- x:begin -->old<!-- x:end --> b", {"x": lambda: r"new \1"}).count(r"new \1") == 1
    with pytest.raises(SystemExit, match="x:begin"):
        generate.filled("nothing", {"x": lambda: ""})


def test_the_diagrams_are_those_that_are_drawn(tmp_path: Path) -> None:
    folder = ROOT / "docs" / "diagrams"
    draw = load("diagrams/draw.py")
    for name, drawing in draw.DRAWINGS.items():
        drawing().write(tmp_path / "drawn.svg")
        assert (tmp_path / "drawn.svg").read_text() == (folder / f"{name}.svg").read_text(), f"draw {name} again"


def test_every_transcript_is_of_a_command_that_a_page_shows() -> None:
    transcripts = load("transcripts.py")
    blocks = [block.code for page in PAGES for block in of_page(page) if block.language == "sh"]
    shown = [shlex.join(words) for code in blocks for words in shell.commands(code)]
    for name, command in [*transcripts.COMMANDS.items(), ("picture", transcripts.PICTURE)]:
        assert shlex.join(shlex.split(command)) in shown, f"no page shows the command of {name}"
    assert {path.stem for path in transcripts.FOLDER.glob("*.txt")} == set(transcripts.COMMANDS)
    assert not [
        path for path in transcripts.FOLDER.glob("*.txt") if re.search(r"/(tmp|home|root|work)/", path.read_text())
    ]


def test_the_gallery_shows_every_strategy_and_stays_small() -> None:
    folder = ROOT / "docs" / "images" / "strategies"
    files = {f"{stage}-{name}{end}" for stage, name in STRATEGIES for end in (".webp", "-strip.webp")}
    assert {path.name for path in folder.iterdir()} == {*files, "scenes-strip.webp"}
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 3e6


def test_every_command_is_on_its_page() -> None:
    page = load("hooks/commands.py").page()
    for name, text in COMMANDS.items():
        assert f"| [`tokcomp {name}`](#tokcomp-{name}) | {text} |" in page
        assert f"usage: tokcomp {name} " in page


def test_blocks_of_generated_pages_are_well_formed(gallery: ModuleType) -> None:
    """Their Python is that of the notebooks and scripts, which other tests run."""
    notebooks, ablation = load("hooks/notebooks.py"), load("hooks/ablation.py")
    made = [gallery.strategy_page(stage, name, REGISTRIES[stage][name], ROOT) for stage, name in STRATEGIES]
    made += [load("hooks/commands.py").page(), ablation.table(ROOT / "docs" / "results" / "stages")]
    made += [notebooks.scripts(ROOT / "examples")]
    made += [
        notebooks.as_markdown(json.loads(path.read_text()), "x")[0] for path in (ROOT / "examples").glob("*.ipynb")
    ]
    found = [block for page in made for block in blocks(page)]
    assert {block.language for block in found} == {"python", "sh", "text", "yaml"}
    for block in found:
        if block.language == "sh":
            shell.check(block.code)
        elif block.language == "yaml":
            assert yaml.safe_load(block.code)


def test_every_picture_that_a_page_shows_is_there() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / target).is_file(), f"{page.name} shows {target}"
