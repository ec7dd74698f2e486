"""The record of a run: whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokcomp.errors import ConfigurationError
from tokcomp.experiment.result import SCHEMA_VERSION, Result


def failed(message: str = "no luck") -> Result:
    return Result(status="failed", error=message, config={"seed": 0}, config_hash="ab", environment={}, started="now",
                  seconds=0.5)  # fmt: skip


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "result.json"
    failed().write(path)
    assert Result.read(path) == failed()
    assert json.loads(path.read_text())["schema_version"] == SCHEMA_VERSION
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


def test_a_crash_while_writing_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    failed("old").write(path)

    def crash(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        failed("new").write(path)
    assert Result.read(path).error == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"file/result.json cannot be written: "):
        failed().write(tmp_path / "file" / "result.json")


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ConfigurationError, match="cannot be written: No space left on device"):
        failed().write(tmp_path / "result.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no result of schema 1: "),
        ('{"schema_version": 2}', "schema_version: Input should be 1"),
    ],
)
def test_a_damaged_or_newer_record_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message) as caught:
        Result.read(path)
    assert str(path) in str(caught.value)


def test_a_missing_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        Result.read(tmp_path / "result.json")
