"""Budgets: what gives way, that it is met, that it is the same again, refusals; the calibrate command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tokcomp.cli.main import main
from tokcomp.experiment.budgets import calibration_samples, meet
from tokcomp.experiment.calibration import UnreachableError, measured
from tokcomp.experiment.config import RunConfig
from tokcomp.experiment.load import LoadedModel, load_model
from tokcomp.experiment.run import run_recorded
from tokcomp.pipeline import build_strategy


@pytest.fixture(scope="module")
def held(untrained: Path) -> LoadedModel:
    config = RunConfig.resolve({"model": {"path": str(untrained)}})
    return load_model(config.model, device="cpu", dtype=config.torch_dtype)


def settings(budget: dict[str, Any], **stages: Any) -> RunConfig:
    benchmark = {"name": "scenes", "samples": 3, "max_new_tokens": 2, "kinds": ["count"]}
    budget = {"samples": 3, **budget}
    return RunConfig.resolve({"benchmark": benchmark, "device": "cpu", "budget": budget, **stages})


@pytest.mark.parametrize(
    ("budget", "stages", "gives_way"),
    [
        ({"equivalent_tokens": 64}, {"prefill": "fastv"}, "prefill"),
        ({"equivalent_tokens": 40}, {"vision": "random", "cache": "h2o"}, "vision"),
        ({"flops": 0.6}, {"vision": "fastervlm"}, "vision"),
        ({"kv_bytes": 0.3}, {"vision": "pool", "prefill": "fastv", "cache": None}, "prefill"),
        ({"kv_bytes": 0.2}, {"prefill": "fastv", "cache": "h2o"}, "cache"),
    ],
)
def test_a_budget_is_met_by_the_stage_that_decides_it(
    budget: dict[str, Any], stages: dict[str, Any], gives_way: str, held: LoadedModel
) -> None:
    config = settings(budget, **stages)
    met = meet(config, held)
    assert met is not None
    assert met.stage == gives_way
    assert abs(met.figure - met.target) <= 0.03 * met.target
    questions = calibration_samples(config.benchmark, 3)
    (measure,) = (name for name in budget if name != "samples")
    assert measured(held, questions, met.config.pipeline)[measure] == met.figure  # type: ignore[index]
    assert meet(config, held) == met, "the same again"
    for stage, name in stages.items():
        if stage != gives_way:
            assert getattr(met.config, stage) == build_strategy(stage, name)


@pytest.mark.parametrize(
    ("budget", "stage", "spec", "chosen"),
    [
        ({"kv_bytes": 0.4}, "cache", {"name": "adakv", "base": {"name": "knorm", "keep_tokens": 70}}, ["knorm"]),
        ({"kv_bytes": 0.4}, "cache", {"name": "merging", "base": {"name": "h2o", "heavy_tokens": 9, "recent_tokens": 9}},
         ["h2o"]),
        ({"equivalent_tokens": 64}, "vision", {"name": "joint", "strategy": "divprune"}, ["divprune"]),
        ({"equivalent_tokens": 64}, "prefill",
         {"name": "schedule", "steps": [{"name": "uniform", "layer": 1}, {"name": "fastv", "layer": 4, "keep_tokens": 9}]},
         ["uniform", "fastv"]),
    ],
)  # fmt: skip
def test_a_strategy_inside_another_one_stays_what_it_is(
    budget: dict[str, Any], stage: str, spec: dict[str, Any], chosen: list[str], held: LoadedModel
) -> None:
    met = meet(settings(budget, **{stage: spec}), held)
    assert met is not None
    inside = next(iter(met.fields.values()))
    assert [each["name"] for each in (inside if isinstance(inside, list) else [inside])] == chosen
    strategy = getattr(met.config, stage).spec()
    assert stage != "prefill" or [step["layer"] for step in strategy["steps"]] == [1, 4]
    assert abs(met.figure - met.target) <= 0.03 * met.target


def test_calibration_does_not_look_at_the_questions_of_the_run() -> None:
    config = settings({"equivalent_tokens": 64}, prefill="fastv")
    asked = {sample.id for sample in config.benchmark.load()}
    assert asked.isdisjoint(sample.id for sample in calibration_samples(config.benchmark, 20))


@pytest.mark.parametrize(
    ("budget", "stages", "told"),
    [
        ({"equivalent_tokens": 64}, {"cache": "h2o"}, "no stage of this run can give way"),
        ({"equivalent_tokens": 500}, {"prefill": "fastv"}, "cannot be reached"),
        ({"equivalent_tokens": 5}, {"prefill": "fastv"}, "cannot be reached"),
        (
            {"equivalent_tokens": 64},
            {"prefill": {"name": "schedule", "steps": ["pyramiddrop"]}},
            "step 'pyramiddrop' has no keep_ratio",
        ),
    ],
)
def test_what_cannot_be_reached_is_said(
    budget: dict[str, Any], stages: dict[str, Any], told: str, held: LoadedModel
) -> None:
    with pytest.raises(UnreachableError, match=told):
        meet(settings(budget, **stages), held)


def test_a_run_records_how_its_budget_was_met(held: LoadedModel, tmp_path: Path) -> None:
    config = settings({"equivalent_tokens": 64}, prefill="fastv", measure={"timing": False, "memory": False})
    result = run_recorded(config, tmp_path, load=lambda _: held)
    assert result.budget is not None
    assert result.budget.stage == "prefill"
    assert result.compressed is not None
    assert result.compressed.tokens.equivalent_tokens == pytest.approx(64, rel=0.03)
    assert RunConfig.resolve(result.config) == config


def test_calibrate_writes_an_option_file(untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fastv-64.yaml"
    given = [
        "prefill=fastv",
        f"model.path={untrained}",
        "device=cpu",
        "budget.samples=3",
        "target.equivalent_tokens=64",
    ]
    assert main(["calibrate", *given, "--out", str(out)]) == 0
    assert "for a target of 64" in capsys.readouterr().out
    strategy = build_strategy("prefill", yaml.safe_load(out.read_text()))
    assert strategy.keep_ratio is not None
    assert main(["calibrate", *given[:-1]]) == 2
    assert "give a target" in capsys.readouterr().err
    assert main(["calibrate", *given, "target.flops=0.5"]) == 2
    assert "give one budget" in capsys.readouterr().err
