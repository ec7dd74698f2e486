"""``tokcomp check``: what it takes, what it prints, and how it ends."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokcomp.cli.main import main
from tokcomp.registry import REGISTRIES
from tokcomp.testing import RULES

PLUGIN = '''
"""Somebody else's ideas."""
import torch
from pydantic import Field
from tokcomp import PREFILL, VISION, PrefillFilter, Selection, VisionReducer


@VISION.register("kit_every_nth")
class EveryNth(VisionReducer):
    """Keeps every n-th vision token."""

    step: int = Field(default=2, ge=1, description="distance of the tokens that are kept")

    def reduce(self, view):
        place = torch.arange(view.n_tokens, device=view.device).expand_as(view.valid)
        return Selection.from_mask(view.valid & (place % self.step == 0))


@PREFILL.register("kit_first_half")
class FirstHalf(PrefillFilter):
    """Keeps the first half."""

    def acts_after(self, depth):
        return (0,)

    def filter(self, view):
        half = torch.arange(view.n_tokens) < view.n_tokens / 2
        return Selection.from_mask(half.expand_as(view.valid))


class NotRegistered(EveryNth):
    """Keeps every third token."""

    step: int = Field(default=3, ge=1, description="distance of the tokens that are kept")


class NoStrategy:
    pass
'''
QUICK = ("--examples", "0")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a package that is not installed."""
    package = tmp_path / "kit_plugin"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "ideas.py").write_text(PLUGIN)
    (package / "broken.py").write_text("import no_such_package_at_all\n")
    (package / "empty.py").write_text("")
    before = {stage: dict(registry._classes) for stage, registry in REGISTRIES.items() if len(registry)}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for stage, registry in REGISTRIES.items():
        registry._classes = before[stage]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("kit_plugin", "ideas")]:
        del sys.modules[name]


def test_a_module_stands_for_every_strategy_that_it_registers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["check", "kit_plugin.ideas", *QUICK, "--rule", "batch", "--rule", "protected", "--rule", "device"])
    out = capsys.readouterr().out
    assert status == 1
    assert "vision=kit_every_nth: 2 rules kept, none broken" in out
    assert "prefill=kit_first_half breaks the rule 'protected': filter() drops" in out
    assert "prefill=kit_first_half breaks the rule 'device'" in out
    assert "to do: create tensors with device=view.device" in out
    assert "2 strategies checked, 1 of them with findings" in out


def test_a_class_and_a_file_can_be_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "kit_plugin.ideas:NotRegistered", "--examples", "3", "--rule", "batch"]) == 0
    assert [path.name for path in folder.iterdir()] == ["kit_plugin"], "it leaves nothing behind"
    assert "vision=NotRegistered: 1 rule kept, none broken" in capsys.readouterr().out
    for name in ("kit_every_nth", "kit_first_half"):
        for registry in REGISTRIES.values():
            registry._classes.pop(name, None)
    assert main(["check", "kit_plugin/ideas.py", *QUICK, "--rule", "pickle"]) == 0
    assert "2 strategies checked, no findings" in capsys.readouterr().out


def test_a_whole_contract_of_a_registered_strategy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "vision/fastervlm", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "vision=fastervlm: 19 rules kept, none broken" in out
    assert "measured: operations: " in out


def test_one_that_cannot_be_checked_stops_no_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needy = PLUGIN.replace("step: int = Field(default=2,", "step: int = Field(").replace("kit_", "kit_needy_")
    (folder / "kit_plugin" / "needy.py").write_text(needy)
    assert main(["check", "kit_plugin.needy", *QUICK, "--rule", "pickle"]) == 2
    out = capsys.readouterr().out
    assert "vision=kit_needy_every_nth: not checked: EveryNth cannot be checked with its defaults (step)" in out
    assert "prefill=kit_needy_first_half: 1 rule kept, none broken" in out
    assert "1 strategy checked, no findings; 1 could not be checked" in out


def test_the_rules_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--rules"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(RULES)


WRONG = {
    "check": "give STAGE/NAME, a module, module:Class or a file.py to check, or --all",
    "check --all vision/tome": "give STAGE/NAME, a module, module:Class or a file.py to check, or --all",
    "check vision/tomee": "unknown vision strategy 'tomee'; did you mean 'tome'?",
    "check tome": "there is no module 'tome'",
    "check no_such.module": "'no_such.module': there is no module 'no_such'",
    "check kit_plugin.broken": "'kit_plugin.broken' cannot be imported: ModuleNotFoundError: No module named 'no_such",
    "check kit_plugin.empty": "kit_plugin.empty registers no strategy: decorate the class",
    "check kit_plugin.ideas:EveryNht": "kit_plugin.ideas has no 'EveryNht'; did you mean 'EveryNth'?",
    "check kit_plugin.ideas:NoStrategy": "kit_plugin.ideas:NoStrategy is not a strategy",
    "check no_such.py": "there is no file no_such.py",
    "check vision/tome --rule bach": "unknown rule 'bach'; did you mean 'batch'?",
    "check vision/tome --examples -1": "--examples=-1: give 0 or more",
}


@pytest.mark.parametrize("line", WRONG)
def test_what_is_wrong_with_the_command_is_one_line_and_status_2(
    line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"tokcomp: {WRONG[line]}")
    assert err.count("\n") == 1


def test_a_file_takes_no_module_s_place_and_a_broken_one_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("random.py", ""), ("tokcomp.py", ""), ("half_done.py", "1 / 0")):
        Path(name).write_text(text)
    before = {name: sys.modules[name] for name in ("random", "tokcomp")}
    for name in before:
        assert main(["check", f"{name}.py"]) == 2
        assert f"'{name}.py' would take the place of the module '{name}'" in capsys.readouterr().err
    assert main(["check", "half_done.py"]) == 2
    assert "'half_done.py' cannot be imported: ZeroDivisionError" in capsys.readouterr().err
    assert "half_done" not in sys.modules
    assert before == {name: sys.modules[name] for name in before}


def test_a_bare_name_is_told_where_it_is_registered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "mustdrop"]) == 2
    assert "did you mean vision/mustdrop or prefill/mustdrop or cache/mustdrop?" in capsys.readouterr().err
