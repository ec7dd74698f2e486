"""Whole runs on the untrained checkpoint (and, where it ships, on the real one)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tokcomp.embedded import WEIGHTS
from tokcomp.errors import CompatibilityError, ConfigurationError
from tokcomp.experiment.config import RunConfig, config_hash
from tokcomp.experiment.load import LoadedModel, load_model
from tokcomp.experiment.result import Result
from tokcomp.experiment.run import RESULT, run_recorded

SMALL: dict[str, Any] = {
    "benchmark": {"name": "scenes", "samples": 4, "batch_size": 3, "max_new_tokens": 2, "kinds": ["count", "photo"]},
    "device": "cpu",
}


@pytest.fixture(scope="module")
def held(untrained: Path) -> LoadedModel:
    config = RunConfig.resolve({"model": {"path": str(untrained)}})
    return load_model(config.model, device="cpu", dtype=config.torch_dtype)


def settings(untrained: Path, **given: Any) -> RunConfig:
    return RunConfig.resolve({"model": {"path": str(untrained)}, **SMALL, **given})


def test_a_run_leaves_the_record_that_it_gives(untrained: Path, held: LoadedModel, tmp_path: Path) -> None:
    config = settings(untrained, vision="tome", prefill="fastv", cache="h2o", measure={"repeats": 1})
    result = run_recorded(config, tmp_path, load=lambda _: held)
    assert Result.read(tmp_path / RESULT) == result
    assert result.status == "ok"
    assert result.error is None
    assert result.config_hash == config_hash(config)
    assert RunConfig.resolve(result.config) == config
    assert result.environment["packages"]["torch"]


def test_a_run_measures_both_sides(untrained: Path, held: LoadedModel, tmp_path: Path) -> None:
    config = settings(untrained, vision={"name": "pool", "window": 3}, cache="streaming_llm", measure={"repeats": 2})
    result = run_recorded(config, tmp_path, load=lambda _: held)
    dense, compressed = result.dense, result.compressed
    assert dense is not None
    assert compressed is not None
    assert dense.tokens.image_tokens == compressed.tokens.image_tokens == 144
    assert dense.tokens.vision_tokens == [144.0] * 8
    assert compressed.tokens.vision_tokens == [16.0] * 8
    assert compressed.tokens.equivalent_tokens == compressed.tokens.after_vision == 16.0
    assert compressed.flops["prefill"] < dense.flops["prefill"]
    assert compressed.flops["tower"] < dense.flops["tower"], "the tower's last block is not needed"
    assert dense.flops["total"] == pytest.approx(sum(flops for part, flops in dense.flops.items() if part != "total"))
    # keys and values, 8 layers of 4 heads x 32 numbers in float32
    assert compressed.kv_bytes == pytest.approx(sum(compressed.tokens.cache_lengths) * 2 * 128 * 4)
    assert compressed.kv_bytes == pytest.approx(sum(compressed.kv_bytes_by_layer))
    assert dense.time is not None
    assert compressed.time is not None
    assert dense.time.ratio.prefill == 1.0
    assert (compressed.time.batch_size, compressed.time.repeats) == (3, 2)
    assert compressed.time.ratio.prefill > 0
    assert dense.peak_memory is not None
    assert dense.peak_memory > 4 * sum(p.numel() for p in held.model.parameters())
    assert dense.accuracy.samples == 4
    assert dense.accuracy.headline_samples == 2
    assert set(dense.accuracy.by_kind) == {"count", "photo"}
    assert [record.kind for record in result.samples] == ["count", "photo"] * 2
    same = [record.dense == record.compressed for record in result.samples]
    assert compressed.agreement == sum(same) / 4


def test_a_run_without_strategies_changes_nothing(untrained: Path, held: LoadedModel, tmp_path: Path) -> None:
    quick = {"timing": False, "memory": False}
    result = run_recorded(settings(untrained, measure=quick), tmp_path, load=lambda _: held)
    assert result.dense is not None
    assert result.compressed is not None
    assert result.compressed.agreement == 1.0
    assert result.compressed.model_dump(exclude={"agreement"}) == result.dense.model_dump()
    assert (result.timing, result.dense.time, result.dense.peak_memory) == (None, None, None)


def test_a_strategy_that_does_not_fit_fails_before_the_first_answer(
    untrained: Path, held: LoadedModel, tmp_path: Path
) -> None:
    steps: list[str] = []
    config = settings(untrained, prefill={"name": "fastv", "layer": 9})
    with pytest.raises(CompatibilityError, match=r"prefill\.fastv\.layer=9 lies beyond this model's 8 layers"):
        run_recorded(
            config, tmp_path, load=lambda _: held, progress=lambda step, n: steps.append(step) or (lambda k: None)
        )
    assert steps == ["model"]
    result = Result.read(tmp_path / RESULT)
    assert result.status == "failed"
    assert result.error is not None
    assert result.error.startswith("CompatibilityError: prefill.fastv.layer=9")
    assert result.traceback is None, "the user's mistake needs none"
    assert result.config["prefill"]["layer"] == 9


def test_a_bug_is_recorded_with_its_traceback_and_goes_on(untrained: Path, tmp_path: Path) -> None:
    def broken(_: RunConfig) -> LoadedModel:
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError):
        run_recorded(settings(untrained), tmp_path, load=broken)
    result = Result.read(tmp_path / RESULT)
    assert result.error == "ZeroDivisionError: ours"
    assert result.traceback is not None
    assert "in broken" in result.traceback


def test_an_interrupted_run_leaves_its_record(untrained: Path, tmp_path: Path) -> None:
    def interrupted(_: RunConfig) -> LoadedModel:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recorded(settings(untrained), tmp_path, load=interrupted)
    assert Result.read(tmp_path / RESULT).status == "failed"


def test_a_model_that_is_not_there_fails_with_its_record(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"model\.path=/nowhere is no folder"):
        run_recorded(RunConfig.resolve({"model": {"path": "/nowhere"}, **SMALL}), tmp_path)
    assert Result.read(tmp_path / RESULT).status == "failed"


@pytest.mark.slow
@pytest.mark.skipif(not (WEIGHTS / "config.json").is_file(), reason="the embedded weights are not in this checkout")
def test_a_run_on_the_embedded_model_is_quick_and_right(tmp_path: Path) -> None:
    started = time.monotonic()
    config = RunConfig.resolve(
        {"vision": "tome", "prefill": "fastv", "cache": "h2o", "benchmark": {"name": "scenes", "samples": 60}}
    )
    result = run_recorded(config, tmp_path)
    assert time.monotonic() - started < 60
    assert result.dense is not None
    assert result.compressed is not None
    assert result.dense.accuracy.overall > 0.9
    assert result.compressed.accuracy.overall > 0.5
    assert result.compressed.flops["total"] < result.dense.flops["total"]
