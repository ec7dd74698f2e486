"""`tokcomp new`: what it writes is small, clean, right, tested by tests that can fail, and overwrites nothing."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tokcomp
from tests.plugins_in_a_folder import installing
from tokcomp.cli.main import main
from tokcomp.experiment.compose import compose
from tokcomp.experiment.config import RunConfig
from tokcomp.registry import REGISTRIES
from tokcomp.types import Selection

ROOT = Path(tokcomp.__file__).parent.parent
STAGES = tuple(REGISTRIES)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    with installing(tmp_path, monkeypatch):
        yield tmp_path


def files(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_written_is_small_and_clean(here: Path, stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", stage, "my_idea"]) == 0
    assert files(here) == {"my_idea.py", "test_my_idea.py", f"configs/{stage}/my_idea.yaml"}
    assert f"next: tokcomp check my_idea && tokcomp run {stage}=my_idea" in capsys.readouterr().out
    assert main(["new", stage, "my_idea", "--package", "--out", "packed"]) == 0
    package = here / "packed" / "tokcomp-my-idea"
    assert files(package) == {
        "README.md", "pyproject.toml", "tests/test_my_idea.py", "tokcomp_my_idea/__init__.py", "tokcomp_my_idea/my_idea.py",
        f"tokcomp_my_idea/configs/{stage}/my_idea.yaml",
    }  # fmt: skip
    assert len((here / "my_idea.py").read_text().splitlines()) <= 40
    for line in (
        ["check", "--extend-select", "I,B,UP,SIM,RUF,C4"],
        ["format", "--check"],
        ["format", "--check", "--line-length", "120"],
    ):
        ended = subprocess.run([sys.executable, "-m", "ruff", *line, "."], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout
    assert "@@" not in "".join(
        path.read_text() for path in here.rglob("*.*") if path.is_file() and "cache" not in str(path)
    )


@pytest.mark.parametrize("stage", STAGES)
def test_the_option_works_at_once_and_holds_the_defaults(here: Path, stage: str) -> None:
    main(["new", stage, "my_idea"])
    config = RunConfig.resolve(compose([f"{stage}=my_idea"]))
    built = getattr(config, stage)
    assert built == type(built)()
    assert built.spec()["name"] == "my_idea:MyIdea"
    text = (here / "configs" / stage / "my_idea.yaml").read_text()
    assert {line.partition(":")[0] for line in text.splitlines() if line[0] != "#"} == {
        "_target_",
        *type(built).model_fields,
    }
    changed = RunConfig.resolve(compose([f"{stage}=my_idea", f"{stage}.keep_ratio=0.4"]))
    assert getattr(changed, stage).keep_ratio == 0.4


METHOD = {"vision": "reduce", "prefill": "filter", "cache": "after_prefill"}


@pytest.mark.parametrize("stage", STAGES)
def test_its_parity_test_passes_and_fails_when_the_rule_is_another(here: Path, stage: str) -> None:
    main(["new", stage, "my_idea"])
    written = importlib.import_module("test_my_idea")
    for seed in range(5):
        written.test_equals_the_plain_rule(seed)
    first = lambda self, view: Selection.top_k(view.valid.float(), 7, valid=view.valid)  # noqa: E731
    setattr(importlib.import_module("my_idea").MyIdea, METHOD[stage], first)
    with pytest.raises(AssertionError):
        written.test_equals_the_plain_rule(0)


@pytest.mark.parametrize(("line", "said"), [
    ("new visoin my_idea", "unknown stage 'visoin'; did you mean 'vision'?"),
    ("new vision MyIdea", "'MyIdea' cannot be the name of a strategy: give lower-case letters"),
    ("new vision my__idea", "'my__idea' cannot be the name of a strategy"),
    ("new vision none", "'none' cannot be the name of a strategy"),
    ("new vision lambda", "'lambda' is a word of Python: give another name, such as my_lambda"),
    ("new vision tome", "the name 'tome' is taken by a vision strategy (built-in): choose another"),
    ("new vision json", "there is a Python module 'json' already"),
    ("new vision my_idea --out file", "file cannot be written: File exists; give another --out"),
    ("new vision", "the following arguments are required: NAME"),
])  # fmt: skip
def test_a_wrong_name_is_refused_and_nothing_written(
    here: Path, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    (here / "file").write_text("")
    assert main(line.split()) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert files(here) == {"file"}


@pytest.mark.parametrize("there", ["my_idea.py", "test_my_idea.py", "configs/prefill/my_idea.yaml"])
def test_what_is_there_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str], there: str) -> None:
    (here / there).parent.mkdir(parents=True, exist_ok=True)
    (here / there).write_text("# mine\n")
    assert main(["new", "prefill", "my_idea"]) == 2
    assert "already" in capsys.readouterr().err
    assert files(here) == {there}
    assert (here / there).read_text() == "# mine\n"


def test_what_cannot_be_finished_leaves_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "configs").write_text("")
    assert main(["new", "prefill", "my_idea"]) == 2
    assert "configs/prefill cannot be written" in capsys.readouterr().err
    assert files(here) == {"configs"}


# -- the whole way, in processes of their own ----------------------------------------------------------------------------


def ran(*arguments: str, cwd: Path, path: str) -> str:
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "XDG_CACHE_HOME": str(cwd / "cache")}
    ended = subprocess.run([sys.executable, "-m", *arguments], env=environment, cwd=cwd, capture_output=True, text=True,
                           check=False)  # fmt: skip
    assert ended.returncode == 0, f"{' '.join(arguments)}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.mark.slow
def test_from_nothing_to_a_sweep(tmp_path: Path, untrained: Path) -> None:
    """Generate, test, install, list, check, run, and sweep beside MustDrop."""
    pytest.importorskip("setuptools", reason="building a package without network needs setuptools")
    root, site, away = str(ROOT), tmp_path / "site", tmp_path / "away"
    away.mkdir()
    ran("tokcomp", "new", "vision", "my_idea", "--package", cwd=tmp_path, path=root)
    package = tmp_path / "tokcomp-my-idea"
    assert " passed" in ran("pytest", "-p", "no:cacheprovider", cwd=package, path=root)
    ran("pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index", "--target", str(site), str(package),
        cwd=tmp_path, path=root)  # fmt: skip
    path = os.pathsep.join([str(site), root])
    assert "tokcomp-my-idea 0.1.0" in ran("tokcomp", "list", "vision", cwd=away, path=path)
    ran("tokcomp", "check", "vision/my_idea", "--rule", "config", cwd=away, path=path)
    quick = [f"model.path={untrained}", "benchmark.samples=2", "benchmark.max_new_tokens=2", "measure.timing=false",
             "measure.memory=false", "device=cpu"]  # fmt: skip
    ran("tokcomp", "run", "vision=my_idea", "vision.keep_ratio=0.5", "hydra.run.dir=out", *quick, cwd=away, path=path)
    assert '"after_vision": 72.0' in (away / "out" / "result.json").read_text()
    told = ran("tokcomp", "sweep", "vision=mustdrop,my_idea", "hydra.sweep.dir=sweep", *quick, cwd=away, path=path)
    assert "2 made, 0 found, 0 failed" in told
