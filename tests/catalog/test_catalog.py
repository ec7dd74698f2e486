"""What is told of strategies without importing them is what they say themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tokcomp
from tests.plugins_in_a_folder import Install, installing, strategy
from tokcomp import catalog
from tokcomp.catalog.ask import ask_built_in, type_text
from tokcomp.errors import PluginWarning
from tokcomp.registry import REGISTRIES

ROOT = Path(tokcomp.__file__).parent.parent


def test_the_shipped_file_is_what_the_classes_say() -> None:
    shipped = json.loads(catalog.FILE.read_text(encoding="utf-8"))
    told = [json.loads(json.dumps(one.data())) for one in ask_built_in()]
    assert shipped["entries"] == told, "a strategy has changed: run `python -m tokcomp.catalog`"
    assert shipped["digest"] == catalog.sources_digest(), "a strategy has changed: run `python -m tokcomp.catalog`"
    assert {(one["stage"], one["name"]) for one in told} >= {("vision", "tome"), ("prefill", "fastv"), ("cache", "h2o")}


def test_every_line_of_a_docstring_counts_and_imports_and_bodies_do_not() -> None:
    source = 'from a import b\n\nclass C:\n    """Takes tokens\n    from the {} end."""\n\n    def f(self):\n        return {}\n'
    assert catalog._outline(source.format("upper", 1)) != catalog._outline(source.format("lower", 1))
    assert catalog._outline(source.format("upper", 1)) == catalog._outline(source.format("upper", 2))
    assert catalog._outline(source) == catalog._outline(source.replace("import b", "import c"))


def test_settings_tell_types_defaults_and_choices() -> None:
    mustdrop = catalog.entry("vision", "mustdrop")
    assert mustdrop is not None
    settings = {one.name: one for one in mustdrop.settings}
    assert settings["order"].choices == ("image", "published")
    assert (settings["window"].type, settings["window"].default) == ("int >= 2", "3")
    assert type_text(REGISTRIES["vision"]["mustdrop"].model_fields["order"].annotation) == "'image' | 'published'"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "site").mkdir()
    with installing(tmp_path / "site", monkeypatch) as installer:
        yield installer


def test_a_changed_source_is_asked_again(install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stale = tmp_path / "strategies.json"
    stale.write_text(json.dumps({"digest": "another", "entries": []}))
    monkeypatch.setattr(catalog, "FILE", stale)
    catalog._built_in.cache_clear()
    assert "tome" in catalog.names("vision")
    kept = list((tmp_path / "cache" / "tokcomp" / "catalog").glob("*.json"))
    assert [path.stem for path in kept] == [catalog.sources_digest()]
    kept[0].write_text("[{")  # cut short
    catalog._built_in.cache_clear()
    assert "tome" in catalog.names("vision")
    catalog._built_in.cache_clear()


def test_plug_ins_and_local_options_are_told_with_their_origin(install: Install, tmp_path: Path) -> None:
    install("theirs", {"theirs.py": strategy("theirs")}, {"tokcomp.strategies": {"theirs": "theirs"}}, "2.1")
    Path("mine.py").write_text(strategy("", decorator=False))
    Path("configs/vision").mkdir(parents=True)
    Path("configs/vision/mine.yaml").write_text("# Mine.\n_target_: mine:Mine  # here\n")
    origins = {one.name: one.origin for one in catalog.entries("vision")}
    assert (origins["theirs"], origins["mine"], origins["tome"]) == ("theirs 2.1", "mine", "built-in")
    (kept,) = (tmp_path / "cache" / "tokcomp" / "catalog").glob("*.json")
    Path("mine.py").write_text(strategy("", decorator=False).replace("Keeps every", "Holds every"))
    del sys.modules["mine"]
    assert [one.summary for one in catalog.entries("vision") if one.name == "mine"] == ["Holds every n-th token."]
    assert len(list(kept.parent.iterdir())) == 2


def test_what_failed_is_told_every_time(install: Install, tmp_path: Path) -> None:
    Path("configs/vision").mkdir(parents=True)
    Path("configs/vision/mine.yaml").write_text("# Mine.\nname: no_such_module:Mine\n")
    for _ in range(2):
        with pytest.warns(
            PluginWarning, match=r"^configs/vision/mine.yaml was left out: .*there is no module 'no_such_module'"
        ):
            assert "tome" in catalog.names("vision")


HEAVY = {"torch", "transformers", "hydra", "omegaconf", "pydantic", "numpy"}


@pytest.mark.parametrize(
    "line", [["--help"], ["list"], ["list", "vision"], ["show", "vision/mustdrop"], ["run", "--help"]]
)
def test_what_only_tells_imports_nothing_heavy(line: list[str], tmp_path: Path) -> None:
    code = (
        f"import sys; from tokcomp.cli.main import main; status = main({line}); print(*sys.modules); sys.exit(status)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True,
                           check=True)  # fmt: skip
    assert not HEAVY & set(ended.stdout.splitlines()[-1].split())


def test_importing_tokcomp_loads_nothing_heavy_and_its_names_no_transformers(tmp_path: Path) -> None:
    code = "import sys, tokcomp; print(*sys.modules); tokcomp.Pipeline(vision='mustdrop', cache='h2o'); print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True,
                           check=True)  # fmt: skip
    first, second = (set(line.split()) for line in ended.stdout.splitlines())
    assert not HEAVY & first
    assert not {"transformers", "hydra", "rich"} & second
