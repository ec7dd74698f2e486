"""The command line: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import tokcomp
from tokcomp.cli import run as run_command
from tokcomp.cli.main import COMMANDS, main
from tokcomp.registry import REGISTRIES

ROOT = Path(tokcomp.__file__).parent.parent


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs one command in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: str) -> Ended:
        status = main(arguments)
        captured = capsys.readouterr()
        return Ended(status, captured.out, captured.err)

    return run


WRONG = {
    "rnu": "unknown command 'rnu'; did you mean 'run'? known: run, ",
    "--versoin": "unknown option '--versoin'; did you mean '--version'?",
    "run vision=tomee": "unknown vision strategy 'tomee'; did you mean 'tome'?",
    "run vision=tome vision.rr=3": "'rr' is not a setting of vision 'tome'; did you mean 'r'? it takes: inflect,",
    "run vision=tome vision.r=-1": "vision.tome.r=-1: input should be greater than or equal to 0",
    "run vision=tome +vision.rr=3": "'rr' is not a setting of vision 'tome'; did you mean 'r'?",
    "run benchmark.samples=none": "benchmark.samples='none': input should be a valid integer",
    "run preset=mustdorp": "unknown preset 'mustdorp'; did you mean 'mustdrop'?",
    "run --fast": "unrecognized arguments: --fast",
    "run -m vision=tome": "unrecognized arguments: -m",
    "list visoin": "unknown stage 'visoin'; did you mean 'vision'?",
    "show mustdrop": "give STAGE/NAME, such as vision/mustdrop, not 'mustdrop'; did you mean vision/mustdrop or",
    "show visio/mustdrop": "unknown stage 'visio'",
    "show vision/mustdrp": "unknown vision strategy 'mustdrp'; did you mean 'mustdrop'?",
    "show": "the following arguments are required: STAGE/NAME",
    "flops preset=mustdrop-64 txt_tokens=3": "'txt_tokens' is not a setting of `tokcomp flops`; did you mean 'text_tokens'?",
    "flops prefill=fastv prefill.layer=40": "prefill.fastv.layer=40 lies beyond this model's 32 layers",
    "flops image_tokens=1000000000000000000000": "image_tokens=1000000000000000000000: input should be less than or equal",
    "calibrate prefill=fastv target.flops=0.5 --out /proc/mine.yaml": "/proc/mine.yaml cannot be written: ",
    "flops text_tokens=-1": "text_tokens=-1: input should be greater than or equal to 0",
    "flops prefill=mustdrop prefill.global_threshold=0.5": "how many tokens prefill 'mustdrop' keeps depends on the",
    "view": "the following arguments are required: IMAGE, question",
}


@pytest.mark.parametrize(("line", "message"), WRONG.items())
def test_a_users_mistake_is_one_line_and_status_2(command: Command, line: str, message: str) -> None:
    ended = command(*line.split())
    assert ended.status == 2
    assert ended.err.startswith(f"tokcomp: {message}")
    assert ended.err.count("\n") == 1
    assert ended.out == ""


def test_a_mistake_is_found_before_anything_is_written(command: Command, tmp_path: Path) -> None:
    assert command("run", "vision=tome", "vision.rr=3").status == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = command("run", f"hydra.run.dir={tmp_path}/file/run")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "file/run cannot be made: Not a directory" in ended.err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(options: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(run_command, "execute", bug)
    with pytest.raises(ZeroDivisionError):
        main(["run"])


def test_an_interrupt_ends_with_130(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_command, "execute", interrupted)
    assert command("run") == Ended(130, "", "tokcomp: interrupted\n")


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_names_every_command(command: Command, arguments: list[str]) -> None:
    ended = command(*arguments)
    assert ended.status == 0
    assert all(f"  {name} " in ended.out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_an_example(command: Command, name: str) -> None:
    ended = command(name, "--help")
    assert ended.status == 0
    assert f"  tokcomp {name} " in ended.out


def test_version(command: Command) -> None:
    assert command("--version") == Ended(0, f"tokcomp {tokcomp.__version__}\n", "")


def test_help_is_quick() -> None:
    """No heavy import stands in its way; the best of a few runs, as other processes may hold the machine."""
    code = "import sys; from tokcomp.cli.main import main; main(['--help']); print(*sorted(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        output = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        seconds.append(time.monotonic() - started)
    assert not {"torch", "hydra", "omegaconf", "pydantic", "transformers", "rich"} & set(output.stdout.split())
    assert min(seconds) < 0.5


def test_list_names_all_strategies_with_their_needs(command: Command) -> None:
    ended = command("list")
    assert ended.status == 0
    for stage, registry in REGISTRIES.items():
        assert f"{stage}=..." in ended.out
        assert all(f"│ {name} " in ended.out for name in (*registry, "none"))
    assert "cls_attention" in ended.out
    assert command("list", "cache").out.count("=...") == 1


@pytest.mark.parametrize(("group", "option"), [("preset", "tome+fastv+h2o"), ("model", "llava-1.5-13b"),
                                               ("benchmark", "scenes"), ("experiment", "long_answers")])  # fmt: skip
def test_list_names_the_options_of_other_groups(command: Command, group: str, option: str) -> None:
    ended = command("list", group)
    assert ended.status == 0
    assert f"│ {option} " in ended.out


@pytest.mark.parametrize(
    ("stage", "name"), [(stage, name) for stage, registry in REGISTRIES.items() for name in registry]
)
def test_show_tells_all_fields(command: Command, stage: str, name: str) -> None:
    ended = command("show", f"{stage}/{name}")
    assert ended.status == 0
    strategy = REGISTRIES[stage][name]
    assert all(f"│ {field} " in ended.out for field in strategy.model_fields)
    assert "``" not in ended.out
    assert ":func:" not in ended.out
    assert all(need in ended.out for need in strategy.needs)


def test_show_tells_types_bounds_and_defaults(command: Command) -> None:
    lines = {line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:4]]
             for line in command("show", "vision/mustdrop").out.splitlines() if line.count("│") == 5}  # fmt: skip
    assert lines["window"] == ["int >= 2", "3"]
    assert lines["key_ratio"] == ["float >= 0 <= 1", "0.08"]
    assert lines["merge_layer"] == ["int | float >= 0 < 1", "0"]
    assert lines["order"] == ["'image' | 'published'", "'published'"]


def test_flops_of_llava(command: Command) -> None:
    ended = command("flops", "model=llava-1.5-7b", "preset=mustdrop-64")
    assert ended.status == 0
    assert "9.0782" in ended.out
    assert "64 tokens assumed" in ended.out
    assert "FLOPs saved, by way of counting" in ended.out


QUICK = [
    "benchmark.samples=3",
    "benchmark.batch_size=2",
    "benchmark.max_new_tokens=2",
    "measure.repeats=1",
    "device=cpu",
]


def test_run_writes_its_record_and_prints_its_table(command: Command, untrained: Path, tmp_path: Path) -> None:
    ended = command("run", f"model.path={untrained}", "preset=tome+fastv+h2o", f"hydra.run.dir={tmp_path}/out", *QUICK)
    assert ended.status == 0, ended.err
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["status"] == "ok"
    assert result["overrides"] == [f"model.path={untrained}", "preset=tome+fastv+h2o", *QUICK]
    assert [result["config"][stage]["name"] for stage in ("vision", "prefill", "cache")] == ["tome", "fastv", "h2o"]
    assert "tiny on scenes: vision tome, prefill fastv, cache h2o" in ended.out
    assert f"written to {tmp_path}/out/result.json" in ended.out
    assert (tmp_path / "out" / ".hydra" / "overrides.yaml").is_file()


def test_a_run_that_fails_on_the_model_leaves_a_record_and_status_2(
    command: Command, untrained: Path, tmp_path: Path
) -> None:
    line = f"model.path={untrained} prefill=fastv prefill.layer=9 hydra.run.dir={tmp_path}/out".split()
    ended = command("run", *line, *QUICK)
    assert ended.status == 2
    assert ended.err.startswith("tokcomp: prefill.fastv.layer=9 lies beyond this model's 8 layers")
    assert ended.err.count("\n") == 1
    assert json.loads((tmp_path / "out" / "result.json").read_text())["status"] == "failed"


def test_runs_in_a_row_do_not_share_a_folder(command: Command, untrained: Path, tmp_path: Path) -> None:
    off = ["measure.timing=false", "measure.memory=false"]
    for _ in range(2):
        assert command("run", f"model.path={untrained}", *QUICK, *off).status == 0
    assert len(list(tmp_path.glob("outputs/*/*/result.json"))) == 2


def test_cfg_prints_the_configuration_and_runs_nothing(command: Command, tmp_path: Path) -> None:
    ended = command("run", "preset=fastv", "--cfg")
    assert ended.status == 0
    assert "keep_ratio: 0.5" in ended.out
    assert "# config_hash: " in ended.out
    assert list(tmp_path.iterdir()) == []
