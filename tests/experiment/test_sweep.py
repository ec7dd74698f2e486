"""Sweeps on the untrained checkpoint: axes, refusals before any job, resuming, two at once, launchers, kills."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf

from benchmarks.kills import disturbed, starter, swept
from benchmarks.stores import table
from tokcomp.cli.main import main
from tokcomp.errors import ConfigurationError
from tokcomp.experiment.axes import read_axes, refuse_wrong
from tokcomp.experiment.compose import compose
from tokcomp.experiment.config import RunConfig
from tokcomp.experiment.launch import _of_every_run, launcher_settings
from tokcomp.experiment.result import Result
from tokcomp.experiment.store import Store, key_of
from tokcomp.experiment.sweep import Outcome, _wait_for_others, default_folder, sweep
from tokcomp.experiment.worker import execute

AXES = ["vision=none,pool", "cache=none,h2o"]


def given(untrained: Path, store: Path, *more: str) -> list[str]:
    return [
        f"model.path={untrained}", "benchmark.samples=3", "benchmark.max_new_tokens=2", "benchmark.kinds=[count]",
        "measure.timing=false", "measure.memory=false", "device=cpu", f"hydra.sweep.dir={store}", *more,
    ]  # fmt: skip


def test_a_comma_makes_an_axis() -> None:
    axes = read_axes(
        ["vision=none,tome", "prefill=fastv", "cache=glob(h*)", "vision.r=range(1,4)", "hydra.sweep.dir=x"]
    )
    assert axes.swept == {
        "vision": ("vision=none", "vision=tome"),
        "cache": ("cache=h2o",),
        "vision.r": ("vision.r=1", "vision.r=2", "vision.r=3"),
    }
    assert axes.fixed == ("prefill=fastv",)
    assert axes.hydra == ("hydra.sweep.dir=x",)
    assert axes.size == 6
    assert len(set(axes.combinations())) == 6


def test_the_same_command_goes_to_the_same_folder() -> None:
    a, b = read_axes(["vision=none,tome", "cache=h2o"]), read_axes(["cache=h2o", "vision=none,tome"])
    assert default_folder(a) == default_folder(b)
    assert default_folder(a) != default_folder(read_axes(["vision=none,tome"]))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["vision=none,tomee"], "did you mean 'tome'"),
        (["vision=tome", "vision.r=1,-3"], "vision.tome.r=-3"),
        (["vision=none,tome", "vision.r=1,2"], "'r' is not a setting of vision 'none'"),
        (["vision=glob(x*)"], "matches nothing"),
        (["seed=interval(0,1)"], "has no end"),
        (["vision=[tome"], "cannot be read"),
        (["seed=0,1", "seed=2,3"], "seed is given twice"),
        (["seed=3", "seed=0,1"], "seed is given twice"),
    ],
)
def test_a_wrong_part_is_refused_before_any_job(
    overrides: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *overrides, f"hydra.sweep.dir={tmp_path / 'store'}"]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "store" / "runs").exists()


@pytest.mark.parametrize(
    ("told", "answer"),
    [
        ("hydra/launcher=raay", "unknown hydra/launcher 'raay'"),
        ("hydra/launcher=basic,joblib", "gives several values"),
        ("hydra.launcher.jobs=2", "Could not override 'hydra.launcher.jobs'"),
    ],
)
def test_a_wrong_launcher_is_refused_before_any_job(
    told: str, answer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "vision=none,tome", told, f"hydra.sweep.dir={tmp_path / 'store'}"]) == 2
    error = capsys.readouterr().err
    assert answer in error
    assert error.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_a_launcher_that_is_not_installed_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConfigLoaderImpl, "get_group_options", lambda *_: ["basic"])
    with pytest.raises(ConfigurationError, match=r"hydra/launcher=ray is not installed: pip install 'tokcomp\[ray\]'"):
        launcher_settings(read_axes(["vision=none,tome", "hydra/launcher=ray"]))


@pytest.mark.parametrize(
    ("target", "here"),
    [
        ("hydra._internal.core_plugins.basic_launcher.BasicLauncher", True),
        ("hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher", False),
    ],
)
def test_only_jobs_that_run_here_need_their_device_here(
    target: str, here: bool, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[int] = []
    chosen = OmegaConf.create({"hydra": {"launcher": {"_target_": target}}})
    monkeypatch.setattr("hydra.compose", lambda *_, **__: chosen)
    monkeypatch.setattr("tokcomp.experiment.sweep.launch", lambda axes, *_: launched.append(axes.size))
    line = [text for text in given(untrained, tmp_path, *AXES) if text != "device=cpu"]
    if here:
        with pytest.raises(ConfigurationError, match="device=cuda:99 cannot be used here"):
            sweep([*line, "device=cuda:99"])
    else:
        sweep([*line, "device=cuda:99"])
    assert launched == ([] if here else [4])


def test_a_run_of_another_device_is_waited_for_and_not_made(untrained: Path, tmp_path: Path) -> None:
    store = Store(tmp_path)
    line = [
        text for text in given(untrained, tmp_path, "vision=pool", "device=cuda:99") if not text.startswith("hydra")
    ]
    store.note("a", outcome="busy", key="0" * 16, overrides=line)
    outcome = Outcome(store, 1)
    _wait_for_others(outcome, "a", lambda _: None)
    assert (outcome.found, outcome.done, outcome.failed, outcome.ended) == ([], [], {}, 0)
    assert not (tmp_path / "runs").exists()


def test_a_removal_is_handed_on_as_it_is_written() -> None:
    assert _of_every_run(read_axes(["~callbacks", "vision=none,tome"])) == ["~callbacks"]


def test_combinations_that_mean_one_run_and_fail_have_all_been_run(untrained: Path, tmp_path: Path) -> None:
    outcome = sweep(given(untrained, tmp_path, "prefill=fastv", "prefill.layer=99,99"))
    assert len(outcome.failed) == 1
    assert (outcome.size, outcome.ended) == (2, 2)


def test_lines_of_a_journal_wait_for_each_other(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.note("a", outcome="done", key="1")
    writer = threading.Thread(target=store.note, args=("a",), kwargs={"outcome": "done", "key": "2" * 100_000})
    with (tmp_path / "journal" / "a.jsonl").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        writer.start()
        writer.join(0.2)
        assert [line["key"] for line in store.journal("a")] == ["1"]
    writer.join(10)
    assert [line["key"][0] for line in store.journal("a")] == ["1", "2"]


def test_presets_are_tried_with_every_stage() -> None:
    with pytest.raises(ConfigurationError, match="'r' is not a setting of vision 'none'"):
        refuse_wrong(read_axes(["preset=tome,fastv", "vision.r=1,2"]))


def test_a_sweep_makes_every_run_once(untrained: Path, tmp_path: Path) -> None:
    first = sweep(given(untrained, tmp_path, *AXES))
    assert (len(first.done), len(first.found), first.failed, first.broken) == (4, 0, {}, None)
    assert len(list((tmp_path / "references").glob("*.json"))) == 1
    before = {path: path.stat().st_mtime_ns for path in first.store.records()}
    again = sweep(given(untrained, tmp_path, *AXES))
    assert (len(again.done), len(again.found)) == (0, 4)
    assert {path: path.stat().st_mtime_ns for path in again.store.records()} == before
    result = Result.read(first.store.folder(first.done[0]) / "result.json")
    assert "vision=none" in result.overrides
    assert key_of(RunConfig.resolve(compose(result.overrides))) == first.done[0]


def test_a_setting_of_every_option_of_an_axis(untrained: Path, tmp_path: Path) -> None:
    """Without an axis, the stage is none and has no such setting."""
    ended = sweep(given(untrained, tmp_path, "vision=uniform,random", "vision.keep_ratio=0.5"))
    assert (len(ended.done), ended.failed, ended.broken) == (2, {}, None)
    kept = {Result.read(ended.store.folder(key) / "result.json").config["vision"]["keep_ratio"] for key in ended.done}
    assert kept == {0.5}


def test_a_combination_is_composed_once_and_its_job_returns_no_configuration(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed: list[list[str]] = []
    returned: list[JobReturn] = []
    launcher: Any = Plugins.instance().class_name_to_class["hydra._internal.core_plugins.basic_launcher.BasicLauncher"]
    compose_one, launch = ConfigLoaderImpl.load_sweep_config, launcher.launch

    def composing(self: ConfigLoaderImpl, master: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        composed.append(sweep_overrides)
        return compose_one(self, master, sweep_overrides)

    def launching(self: Any, *arguments: Any, **named: Any) -> Sequence[JobReturn]:
        returned.extend(launch(self, *arguments, **named))
        return returned

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", composing)
    monkeypatch.setattr(launcher, "launch", launching)
    outcome = sweep(given(untrained, tmp_path, *AXES))
    assert len(outcome.done) == len(composed) == 4
    assert [(found.cfg, found.hydra_cfg, found.return_value) for found in returned] == [(None, None, "done")] * 4


def test_a_failed_run_is_counted_and_made_again(untrained: Path, tmp_path: Path) -> None:
    # mustdrop's prefill thresholds do not matter: a layer beyond the depth is found when the pipeline meets the model.
    wrong = given(untrained, tmp_path, "prefill=fastv", "prefill.layer=2,99")
    assert main(["sweep", *wrong]) == 3
    again = sweep(wrong)
    assert len(again.found) == 1
    (error,) = again.failed.values()
    assert "prefill.fastv.layer=99" in error
    record = Result.read(again.store.folder(next(iter(again.failed))) / "result.json")
    assert record.status == "failed"


def test_a_damaged_record_is_moved_aside_and_made_again(untrained: Path, tmp_path: Path) -> None:
    once = sweep(given(untrained, tmp_path, *AXES))
    record = once.store.folder(once.done[0]) / "result.json"
    record.write_text(record.read_text()[:100])
    again = sweep(given(untrained, tmp_path, *AXES))
    assert again.done == [once.done[0]]
    assert "damaged" in again.notes[0]
    assert record.with_name("result.json.damaged").is_file()
    Result.read(record)


def test_a_newer_store_is_refused(untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "store.json").write_text(json.dumps({"schema_version": 99}))
    assert main(["sweep", *given(untrained, tmp_path, *AXES)]) == 2
    assert "newer tokcomp (schema 99" in capsys.readouterr().err


def test_a_newer_record_is_refused(untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once = sweep(given(untrained, tmp_path, *AXES))
    (once.store.folder(once.done[0]) / "result.json").write_text(json.dumps({"schema_version": 99}))
    assert main(["sweep", *given(untrained, tmp_path, *AXES)]) == 2
    assert "newer tokcomp (schema 99" in capsys.readouterr().err


def test_a_full_disk_is_one_clear_line(untrained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *given(untrained, Path("/dev/full"), *AXES)]) == 2
    error = capsys.readouterr().err
    assert "cannot be written" in error
    assert error.count("\n") == 1


def test_a_disk_that_fills_up_stops_the_sweep_in_one_line(
    untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line, written, sync = given(untrained, tmp_path, *AXES), [0], os.fsync

    def full(handle: int) -> None:
        written[0] += 1
        if written[0] > 3:  # the mark of the store, the reference, one record
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr("os.fsync", full)
    assert main(["sweep", *line]) == 2
    captured = capsys.readouterr()
    assert "result.json cannot be written: No space left on device" in captured.err
    assert captured.err.count("\n") == 1
    monkeypatch.setattr("os.fsync", sync)
    again = sweep(line)
    assert (len(again.found), len(again.done), again.failed) == (1, 3, {})
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()], "no draft is left"


def test_a_run_that_another_process_makes_is_waited_for(untrained: Path, tmp_path: Path) -> None:
    store = Store(tmp_path)
    line = [text for text in given(untrained, tmp_path, "vision=pool") if not text.startswith("hydra")]
    config = RunConfig.resolve(compose(line))
    with store.claim(key_of(config)) as ours:
        assert ours
        assert execute(store, config, sweep="b", overrides=line) == "busy"
    assert execute(store, config, sweep="b", overrides=line, wait=True) == "done"


@pytest.mark.slow
def test_two_sweeps_on_one_store_share_the_work(untrained: Path, tmp_path: Path) -> None:
    context = starter()
    line = given(untrained, tmp_path, *AXES, "seed=0,1")
    both = [context.Process(target=swept, args=(line,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        assert process.exitcode == 0
    lines = [json.loads(line) for path in (tmp_path / "journal").iterdir() for line in path.read_text().splitlines()]
    done = [line["key"] for line in lines if line["outcome"] == "done"]
    assert sorted(done) == sorted(set(done)), "no run was made twice"
    assert len(table(tmp_path)) == len(done) == 8


@pytest.mark.slow
def test_kills_lose_nothing(untrained: Path, tmp_path: Path) -> None:
    line = [text for text in given(untrained, tmp_path, *AXES, "seed=0,1") if not text.startswith("hydra")]
    found = disturbed(line, tmp_path, kills=4)
    assert found["same"]
    assert (found["runs"], found["damaged"]) == (8, 0)
    assert found["records"] == sorted(found["records"]), "no record is lost"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "module", "more"),
    [
        ("joblib", "hydra_plugins.hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
        ("submitit_local", "submitit", ["hydra.launcher.timeout_min=5"]),
    ],
)
def test_launchers_give_the_same_table(
    launcher: str, module: str, more: list[str], untrained: Path, tmp_path: Path
) -> None:
    pytest.importorskip(module)
    outcome = sweep(given(untrained, tmp_path / launcher, *AXES, f"hydra/launcher={launcher}", *more))
    assert (len(outcome.done), outcome.failed, outcome.broken) == (4, {}, None)
    sweep(given(untrained, tmp_path / "basic", *AXES))
    assert table(tmp_path / launcher) == table(tmp_path / "basic")
