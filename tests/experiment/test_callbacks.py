"""Callbacks: off by default, told of good runs only, never the end of one, no part of the hash."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from tests.report.stores import record
from tokcomp.errors import ConfigurationError, PluginWarning
from tokcomp.experiment import callbacks
from tokcomp.experiment.config import RunConfig, config_hash
from tokcomp.experiment.result import Result


@pytest.fixture
def result() -> Result:
    return Result.model_validate(record("tome", "none", "h2o"))


def test_scalars_name_every_figure(result: Result) -> None:
    found = callbacks.scalars(result)
    assert result.compressed is not None
    assert found["accuracy"] == result.compressed.accuracy.overall
    assert found["flops_share"] == pytest.approx(0.6)
    assert found["accuracy_by_kind/count"] == result.compressed.accuracy.by_kind["count"]


def test_a_callback_whose_package_is_broken_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("mine", "a_package_that_is_not_here:tell", "tokcomp.callbacks")
    monkeypatch.setattr(callbacks, "entry_points", lambda **_: [broken])
    with pytest.raises(ConfigurationError, match=r"callback 'mine' .* cannot be imported: ModuleNotFoundError"):
        RunConfig.resolve({"callbacks": ["mine"]})


def test_a_callback_that_fails_is_a_warning_and_the_next_is_told(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    def broken(result: Result, folder: Path) -> None:
        raise RuntimeError("no server")

    monkeypatch.setitem(callbacks._BUILT_IN, "broken", broken)
    monkeypatch.setitem(callbacks._BUILT_IN, "good", lambda result, folder: told.append((result, folder)))
    with pytest.warns(PluginWarning, match=r"callback 'broken' failed, the record is kept: RuntimeError: no server"):
        callbacks.notify(("broken", "good"), result, tmp_path)
    assert told == [(result, tmp_path)]


def test_callbacks_are_off_and_do_not_count_in_the_hash() -> None:
    plain = RunConfig.resolve({})
    assert plain.callbacks == ()
    assert config_hash(RunConfig.resolve({"callbacks": ["tensorboard"]})) == config_hash(plain)
    with pytest.raises(ConfigurationError, match="did you mean 'tensorboard'"):
        RunConfig.resolve({"callbacks": ["tensorbord"]})


def test_tensorboard_writes_its_events(result: Result, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    callbacks.tensorboard(result, tmp_path)
    assert list((tmp_path / "tensorboard").rglob("events.*"))
