"""The comparison of all strategies: each has a way to its budget, or a reason why not."""

from __future__ import annotations

from functools import cache

import pytest

from tokcomp.benchmarks.base import Sample
from tokcomp.embedded import load_model, load_processor
from tokcomp.experiment.calibration import measured
from tokcomp.experiment.compose import compose
from tokcomp.experiment.config import RunConfig
from tokcomp.experiment.library import MEASURES, RULES, SHARES, Cell, Searched, Without, cells, settle
from tokcomp.experiment.load import LoadedModel
from tokcomp.pipeline import Pipeline
from tokcomp.registry import REGISTRIES

NAMES = [(stage, name) for stage, registry in REGISTRIES.items() for name in registry]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    model = load_model()
    return LoadedModel(model, load_processor(), model.device, model.dtype)


@cache
def questions() -> list[Sample]:
    return list(RunConfig.resolve(compose(["benchmark.samples=3", "benchmark.split=train"])).benchmark.load())


@pytest.mark.parametrize(("stage", "name"), NAMES)
def test_every_strategy_has_a_way_to_its_budget(stage: str, name: str) -> None:
    """A new strategy without ``keep_ratio`` says in RULES how it is brought to a budget."""
    assert (stage, name) in RULES or "keep_ratio" in REGISTRIES[stage][name].model_fields


def test_rules_are_for_strategies_that_are_there() -> None:
    assert set(RULES) <= set(NAMES)


def test_lines_are_every_strategy_at_every_share() -> None:
    assert len(cells()) == len(NAMES) * len(SHARES)
    assert [cell.key for cell in cells(["prefill/fastv"], ["50", "6"])] == ["prefill-fastv-50", "prefill-fastv-06"]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "name"), NAMES)
def test_a_quarter_is_a_quarter(stage: str, name: str, loaded: LoadedModel) -> None:
    cell = settle(
        Cell(stage, name, "25"), loaded, questions, {"merge_layer": 5} if stage + name == "visionmustdrop" else {}
    )
    if cell.fields is None:
        # On three questions a threshold may jump over the quarter.
        assert isinstance(RULES.get((stage, name)), Without | Searched)
        assert cell.reason
        return
    measure = MEASURES[stage]
    dense = measured(loaded, questions(), Pipeline())[measure]
    figure = measured(loaded, questions(), Pipeline(**{stage: cell.spec}))[measure]
    assert figure == pytest.approx(dense / 4, rel=0.06)


def test_a_share_that_cannot_be_is_told_with_the_reason(loaded: LoadedModel) -> None:
    cell = settle(Cell("vision", "pool", "50"), loaded, questions, {})
    assert cell.fields is None
    assert "jumps from 36 to 144 at window=2" in str(cell.reason)
    alone = settle(Cell("cache", "mustdrop", "50"), loaded, questions, {})
    assert alone.reason == "it drops what a prefill filter has dropped, and there is none"
