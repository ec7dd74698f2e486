"""Where configuration files are found: in a checkout, and inside the package of a wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tokcomp.errors import ConfigurationError
from tokcomp.experiment import paths


def as_if_in(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "__file__", str(package / "experiment" / "paths.py"))


def test_a_wheel_has_them_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(paths.config_dir(), tmp_path / "tokcomp" / "configs")
    as_if_in(tmp_path / "tokcomp", monkeypatch)
    assert paths.config_dir() == (tmp_path / "tokcomp" / "configs").resolve()


def test_a_checkout_has_them_beside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(paths.config_dir(), tmp_path / "configs")
    as_if_in(tmp_path / "tokcomp", monkeypatch)
    assert paths.config_dir() == (tmp_path / "configs").resolve()


def test_where_they_are_in_neither_place_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_in(tmp_path / "tokcomp", monkeypatch)
    with pytest.raises(ConfigurationError, match="configuration files were not found in or beside"):
        paths.config_dir()


def test_an_option_without_a_file_is_named() -> None:
    with pytest.raises(ConfigurationError, match="no option vision=nothing has a file"):
        paths.option_file("vision", "nothing")
