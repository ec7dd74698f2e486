"""Asking a cluster whether it answers, with a Ray that is made up: one that hangs, one that refuses, one that answers."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tokcomp.errors import ConfigurationError
from tokcomp.experiment.cluster import address_of, refuse_silent


@pytest.fixture
def ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "ray.py"


def test_one_that_does_not_answer_is_told_in_time(ray: Path) -> None:
    ray.write_text("import time\ndef init(**settings): time.sleep(60)\n")
    begun = time.monotonic()
    with pytest.raises(
        ConfigurationError, match="the Ray cluster at there:1 does not answer within 1 seconds: start it"
    ):
        refuse_silent("there:1", {}, patience=1)
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ("ConnectionError('Could not find any running Ray instance')", "ConnectionError: Could not find any running"),
        ("ConnectionError('InvalidAuthToken')", "set RAY_AUTH_TOKEN to the cluster's token"),
    ],
)
def test_one_that_refuses_is_told_with_its_reason(raised: str, told: str, ray: Path) -> None:
    ray.write_text(f"def init(**settings): raise {raised}\n")
    with pytest.raises(ConfigurationError, match=told) as caught:
        refuse_silent("auto", {})
    assert "\n" not in str(caught.value)


def test_one_that_answers_is_given_the_settings(ray: Path) -> None:
    ray.write_text(
        "def init(**settings): assert settings == {'address': 'a:1', 'namespace': 'x', 'log_to_driver': False}\n"
    )
    refuse_silent("a:1", {"address": None, "namespace": "x"})


def test_an_address_is_given_or_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert address_of({}) is None
    assert address_of({"address": "local"}) is None
    assert address_of({"address": "auto"}) == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "b:1")
    assert address_of({"address": None}) == "b:1"
