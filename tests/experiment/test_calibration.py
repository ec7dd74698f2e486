"""Calibration: finds what meets a target, the same every time, and says why where nothing does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokcomp.embedded import load_model, load_processor
from tokcomp.experiment.calibration import Calibrated, Search, Target, UnreachableError, calibrate, measured
from tokcomp.experiment.compose import compose
from tokcomp.experiment.config import RunConfig
from tokcomp.experiment.load import LoadedModel
from tokcomp.pipeline import Pipeline


@given(target=st.floats(2.0, 900.0), rising=st.booleans(), logarithmic=st.booleans())
def test_meets_what_lies_between_the_ends(target: float, rising: bool, logarithmic: bool) -> None:
    def figure(value: float) -> float:
        return value**3 if rising else (11 - value) ** 3

    search = Search("r", 1.0, 10.0, logarithmic=logarithmic)
    found = calibrate(figure, search, Target("equivalent_tokens", target))
    assert abs(found.figure - target) <= 0.03 * target
    assert found.figure == figure(found.value)
    assert found == calibrate(figure, search, Target("equivalent_tokens", target))


def test_looks_at_whole_numbers_alone() -> None:
    asked: list[float] = []

    def figure(value: float) -> float:
        asked.append(value)
        return 100 / value

    assert calibrate(figure, Search("window", 1, 12, whole=True), Target("after_vision", 25)) == Calibrated(
        4.0, 25.0, 4
    )
    assert all(value == round(value) for value in asked)


def test_says_what_is_near_where_nothing_meets() -> None:
    search = Search("threshold", 0.0, 1.0)
    with pytest.raises(UnreachableError, match=r"flops=5 cannot be reached by threshold: 0 gives 10 and 1 .*10 to 144"):
        calibrate(lambda value: 10 + 134 * value, search, Target("flops", 5))
    with pytest.raises(UnreachableError, match=r"kv_bytes=72 cannot be met within 3%.*from 36 to 144 at threshold=0.5"):
        calibrate(lambda value: 144.0 if value >= 0.5 else 36.0, search, Target("kv_bytes", 72))
    with pytest.raises(UnreachableError, match="from 2 to 7"):
        calibrate(lambda value: (7.0, 2.0)[value > 3], Search("r", 1, 9, whole=True), Target("after_vision", 4))


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    model = load_model()
    return LoadedModel(model, load_processor(), model.device, model.dtype)


@pytest.mark.parametrize(("measure", "share"), [("last_layer", 0.2), ("flops", 0.8), ("kv_bytes", 0.5)])
def test_every_measure_of_a_model_can_be_met(loaded: LoadedModel, measure: str, share: float) -> None:
    samples = RunConfig.resolve(compose(["benchmark.samples=4", "benchmark.split=train"])).benchmark.load()
    dense = measured(loaded, samples, Pipeline())
    assert dense["equivalent_tokens"] == dense["after_vision"] == dense["last_layer"] == 144
    stage = {"cache": {"name": "streaming_llm"}} if measure == "kv_bytes" else {"prefill": {"name": "fastv"}}

    def figure(value: float) -> float:
        ((name, spec),) = stage.items()
        return measured(loaded, samples, Pipeline(**{name: {**spec, "keep_ratio": value}}))[measure]

    found = calibrate(figure, Search("keep_ratio", 0.05, 1.0), Target(measure, share * dense[measure]))
    assert abs(found.figure - share * dense[measure]) <= 0.03 * share * dense[measure]
