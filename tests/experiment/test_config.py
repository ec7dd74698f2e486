"""The validated configuration and its hash."""

from __future__ import annotations

from typing import Any

import pytest

from tokcomp import Pipeline
from tokcomp.errors import ConfigurationError
from tokcomp.experiment.config import RunConfig, config_hash

MIX: dict[str, Any] = {"vision": {"name": "tome", "r": 4}, "prefill": "fastv", "cache": None, "seed": 3}

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"vision": {"name": "tome", "r": -1}}, "vision.tome.r=-1: input should be greater than or equal to 0"),
    ({"vision": {"name": "tome", "rr": 1}}, "'rr' is not a setting of vision 'tome'; did you mean 'r'?"),
    ({"vision": "tomee"}, "unknown vision strategy 'tomee'; did you mean 'tome'?"),
    ({"benchmark": {"name": "scenes", "samples": 0}}, "benchmark.samples=0: input should be greater than or equal"),
    ({"benchmark": {"name": "scenes", "sampels": 9}}, "'sampels' is not a setting of benchmark 'scenes'; did you mean"),
    ({"benchmark": {"name": "scenes", "kinds": ["coun"]}}, "unknown question kind 'coun'; did you mean 'count'?"),
    ({"benchmark": "sceens"}, "unknown benchmark 'sceens'; did you mean 'scenes'?"),
    ({"device": "cpuu"}, "device=cpuu is not known: give cpu, cuda"),
    ({"device": "cuda:x"}, "device=cuda:x is not known: give cpu, cuda"),
    ({"dtype": "int8"}, "dtype='int8': input should be 'float32', 'float16' or 'bfloat16'"),
    ({"measure": {"repeats": 0}}, "measure.repeats=0: input should be greater than or equal to 1"),
    ({"measure": {"repeat": 1}}, "'repeat' is not a setting of measure; did you mean 'repeats'?"),
    ({"model": {"prompt": "USER:"}}, "model.prompt='USER:' has no place for the question"),
    ({"seed": 2**64}, "seed=18446744073709551616: input should be less than or equal to 18446744073709551615"),
    (
        {"benchmark": {"name": "scenes", "samples": 10**12}},
        "benchmark.samples=1000000000000: input should be less than",
    ),
    ({"sede": 1}, "'sede' is not a setting of `tokcomp run`; did you mean 'seed'?"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG, ids=[message[:30] for _, message in WRONG])
def test_wrong_settings_are_named_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RunConfig.resolve(settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"seed=-1: .*; dtype='x': "):
        RunConfig.resolve({"seed": -1, "dtype": "x"})


def test_the_dump_gives_back_the_configuration() -> None:
    config = RunConfig.resolve(MIX)
    dumped = config.model_dump(mode="json")
    assert dumped["vision"]["r"] == 4
    assert dumped["prefill"]["layer"] == 2, "defaults are spelled out"
    assert dumped["cache"] == {"name": "none"}
    assert RunConfig.resolve(dumped) == config
    assert config.pipeline == Pipeline(vision={"name": "tome", "r": 4}, prefill="fastv")


def test_the_hash_names_what_decides_the_result() -> None:
    digest = config_hash(RunConfig.resolve(MIX))
    assert len(digest) == 64
    assert digest == config_hash(RunConfig.resolve(dict(reversed(MIX.items()))))
    assert digest == config_hash(RunConfig.resolve({**MIX, "cache": "none", "prefill": {"name": "fastv", "layer": 2}}))
    assert digest != config_hash(RunConfig.resolve({**MIX, "seed": 4}))
    assert digest != config_hash(RunConfig.resolve({**MIX, "prefill": {"name": "fastv", "layer": 3}}))


def test_auto_is_recorded_as_the_device_that_is_used() -> None:
    assert RunConfig.resolve({"device": "auto"}).device in ("cpu", "cuda")
