"""The least times: by hand on a plain case, and their limits."""

from __future__ import annotations

import pytest

from tokcomp import Pipeline
from tokcomp.errors import ConfigurationError
from tokcomp.experiment.prediction import PredictionConfig, predict
from tokcomp.measure.flops import count
from tokcomp.measure.roofline import DEVICES, DeviceSpec, device_spec, layer_parameters, least_time
from tokcomp.measure.schedule import expected_workload
from tokcomp.measure.shape import named_shape

SHAPE = named_shape("llava-1.5-7b")


def bound(device: DeviceSpec, pipeline: Pipeline | None = None, *, new_tokens: int = 9, batch: int = 1):  # type: ignore[no-untyped-def]
    expected = expected_workload(SHAPE, pipeline, image_tokens=576, text_tokens=64, new_tokens=new_tokens)
    flops = count(SHAPE, expected.workload)
    return flops, expected, least_time(SHAPE, flops, expected.cache_lengths, device, new_tokens=new_tokens, batch=batch)


def test_parameters_of_a_layer() -> None:
    assert layer_parameters(SHAPE) == 4 * 4096**2 + 3 * 4096 * 11008  # LLaMA-7B


def test_without_a_limit_on_bytes_the_prefill_is_its_flops() -> None:
    flops, _, least = bound(DeviceSpec("x", 1e12, 1e30))
    assert least.prefill == pytest.approx(flops.first_token / 1e12)
    assert least.decode == pytest.approx((flops.decode + flops.decode_head) / 8 / 1e12)


def test_without_a_limit_on_flops_a_step_is_its_bytes() -> None:
    _, expected, least = bound(DeviceSpec("x", 1e30, 1e12), batch=3)
    weights = 32 * layer_parameters(SHAPE) + 4096 * SHAPE.vocab
    cache = 2 * 4096 * sum(expected.cache_lengths)
    assert least.decode == pytest.approx(2 * (weights + 3 * cache) / 1e12)


def test_compression_saves_time_where_its_resource_is_short() -> None:
    device = DEVICES["h200"]
    dense, fastv, h2o = (
        bound(device, pipeline, batch=16)[2] for pipeline in (None, Pipeline(prefill="fastv"), Pipeline(cache="h2o"))
    )
    assert fastv.prefill < 0.7 * dense.prefill
    assert h2o.prefill >= dense.prefill
    assert h2o.decode < 0.8 * dense.decode


def test_devices_by_name_and_by_rates() -> None:
    assert device_spec("h200").bandwidth == 4.8e12
    assert device_spec("790e12,4.3e12") == DeviceSpec("790e12,4.3e12", 790e12, 4.3e12)
    for wrong in ("h201", "1,2,3", "-1,2", ""):
        with pytest.raises(ConfigurationError, match="no known device"):
            device_spec(wrong)


def test_the_command_tells_them() -> None:
    config = PredictionConfig(prefill="fastv", new_tokens=2, device_spec="h100", dtype="bfloat16")
    prediction = predict(config)
    assert prediction.dense_time is not None
    assert prediction.compressed_time is not None
    assert prediction.compressed_time.prefill < prediction.dense_time.prefill
    assert predict(PredictionConfig(prefill="fastv")).dense_time is None
