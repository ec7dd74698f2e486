"""Brings a whole pipeline to a budget before it runs, so that combinations are compared at equal cost.

One stage gives way: the one that decides the cost last (for cached bytes the cache policy, else the prefill filter, else the
vision reducer). The value of its setting is calibrated on questions that the run does not ask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokcomp.benchmarks.base import Benchmark, Sample
from tokcomp.errors import ConfigurationError
from tokcomp.experiment.calibration import Measure, Search, Target, UnreachableError, calibrate, measured
from tokcomp.experiment.config import BudgetConfig, RunConfig
from tokcomp.experiment.library import RULES, Direct, Searched, Without
from tokcomp.experiment.load import LoadedModel
from tokcomp.pipeline import Pipeline
from tokcomp.registry import REGISTRIES

__all__ = ["Met", "calibration_samples", "meet", "rule_of"]


@dataclass(frozen=True)
class Met:
    """A configuration that meets its budget.

    Attributes:
        config: the run, with the fields of the stage that gave way.
        stage: that stage. ``fields``: what was set there.
        figure: what the budget's measure was on the calibration questions; ``target``: what it should be.
        tried: values that were tried.
    """

    config: RunConfig
    stage: str
    fields: dict[str, Any]
    figure: float
    target: float
    tried: int


def rule_of(stage: str, spec: Mapping[str, Any], loaded: LoadedModel) -> Searched:
    """How a strategy's cost follows from one value. What it has inside stays what it is, at another budget.

    Raises:
        UnreachableError: it has no budget of its own, or how to set it is not declared.
    """
    name = str(spec["name"])
    rule = RULES.get((stage, name))
    if isinstance(rule, Without):
        raise UnreachableError(f"{stage} '{name}' cannot be brought to a budget: {rule.reason}")
    if (stage, name) in _INSIDE:
        return _of_inner(stage, _INSIDE[stage, name], spec, loaded)
    if (stage, name) == ("prefill", "schedule"):
        return _of_steps(spec["steps"])
    if isinstance(rule, Searched):
        return rule
    if isinstance(rule, Direct):
        direct, tower = rule, loaded.shape.tower
        tokens = tower.grid[0] * tower.grid[1] if tower is not None and tower.grid is not None else 0
        blocks = (loaded.shape.feature_block or 0) + 1
        return Searched(
            Search("its share", 0.01, 1.0),
            lambda share: _without_numbers(stage, name, direct.fields(share, tokens, blocks)),
        )
    if "keep_ratio" in REGISTRIES[stage][name].model_fields:
        return Searched(
            Search("keep_ratio", 0.005, 1.0), lambda share: _without_numbers(stage, name, {"keep_ratio": share})
        )
    raise UnreachableError(
        f"{stage} '{name}' has no keep_ratio, and how else it is brought to a budget is not declared: add it to "
        "tokcomp.experiment.library.RULES"
    )


_INSIDE = {("cache", "adakv"): "base", ("cache", "merging"): "base", ("vision", "joint"): "strategy"}
"""Strategies whose budget is that of the strategy in this field."""


def _of_inner(stage: str, field: str, spec: Mapping[str, Any], loaded: LoadedModel) -> Searched:
    inner = spec[field]
    rule = rule_of(stage, inner, loaded)
    return Searched(rule.search, lambda value: {field: {**inner, **rule.fields(value)}})


def _of_steps(steps: Sequence[Mapping[str, Any]]) -> Searched:
    """One share for all filters of a schedule."""
    for step in steps:
        if "keep_ratio" not in REGISTRIES["prefill"][str(step["name"])].model_fields:
            raise UnreachableError(
                f"prefill 'schedule' cannot be brought to a budget: its step '{step['name']}' has no keep_ratio"
            )

    def fields(share: float) -> dict[str, Any]:
        ratios = [_without_numbers("prefill", str(step["name"]), {"keep_ratio": share}) for step in steps]
        return {"steps": [{**step, **ratio} for step, ratio in zip(steps, ratios, strict=True)]}

    return Searched(Search("keep_ratio of its steps", 0.005, 1.0), fields)


def _without_numbers(stage: str, name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Fields that are shares, and None for those that would contradict them: numbers of tokens that the user gave."""
    numbers = {field.replace("_ratio", "_tokens") for field in fields if field.endswith("_ratio")}
    return {**fields, **dict.fromkeys(sorted(numbers & set(REGISTRIES[stage][name].model_fields)))}


def calibration_samples(benchmark: Benchmark, count: int) -> Sequence[Sample]:
    """Questions to calibrate on: the benchmark's training split where it has one, else questions of another seed."""
    fields = type(benchmark).model_fields
    other = {"split": "train"} if "split" in fields else {"seed": benchmark.seed + 1_000_003}
    return benchmark.model_copy(update={**other, "samples": count}).load()


def meet(
    config: RunConfig, loaded: LoadedModel, *, samples: Callable[[], Sequence[Sample]] | None = None
) -> Met | None:
    """The run brought to its budget; None where it has none.

    Raises:
        UnreachableError: no stage can give way, or no value meets the target.
    """
    wanted = config.budget.target
    if wanted is None:
        return None
    measure, value = wanted
    stage, spec = _giving_way(config, measure)
    rule = rule_of(stage, spec, loaded)
    questions = (samples or (lambda: calibration_samples(config.benchmark, config.budget.samples)))()
    # FLOPs and bytes are given as shares of the dense model's.
    target = value if measure == "equivalent_tokens" else value * measured(loaded, questions, Pipeline())[measure]

    def tuned(value: float) -> dict[str, Any]:
        return {**spec, **rule.fields(value)}

    def figure_at(value: float) -> float:
        pipeline = Pipeline(**{**config.pipeline.spec(), stage: tuned(value)})
        return measured(loaded, questions, pipeline)[measure]

    found = calibrate(figure_at, rule.search, Target(measure, target, config.budget.tolerance))
    fields = rule.fields(found.value)
    settled = RunConfig.resolve({**config.model_dump(mode="json"), stage: tuned(found.value), "budget": BudgetConfig()})
    return Met(settled, stage, fields, found.figure, target, found.tried)


def _giving_way(config: RunConfig, measure: Measure) -> tuple[str, dict[str, Any]]:
    order = ("cache", "prefill", "vision") if measure == "kv_bytes" else ("prefill", "vision")
    for stage in order:
        strategy = getattr(config, stage)
        if strategy is not None and not isinstance(RULES.get((stage, strategy.name)), Without):
            return stage, strategy.spec()
    raise UnreachableError(
        f"budget.{measure} cannot be reached: no stage of this run can give way; choose a strategy for {' or '.join(order)}"
    )


def refuse_without_target(config: RunConfig) -> None:
    """Raise where nothing is to be met.

    Raises:
        ConfigurationError: no budget was given.
    """
    if config.budget.target is None:
        raise ConfigurationError("give a target: target.equivalent_tokens=64, target.flops=0.5 or target.kv_bytes=0.25")
