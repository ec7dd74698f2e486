"""The values that a record is made of."""

from __future__ import annotations

import pytest

from tests.tiny_models import generate, llava, pixels, prompt
from tokcomp import Pipeline
from tokcomp.runner.trace import PerSample, Trace


def test_one_sample_stands_for_its_value() -> None:
    one, two = PerSample([144]), PerSample([144, 12])
    assert one == 144
    assert (one != 144) is False
    assert one != 143
    assert int(one) == 144
    assert float(one) == 144.0
    assert f"{one:6.1f}" == " 144.0"
    assert list(range(200))[one] == 144
    assert one == PerSample([144]) == (144,)
    assert two != 144
    assert two[1] == 12
    assert f"{two}" == "(144, 12)"
    with pytest.raises(TypeError, match="2 samples"):
        int(two)


def test_an_empty_trace_says_so() -> None:
    with pytest.raises(LookupError, match="no prompt"):
        _ = Trace().last


def test_fates_and_summary_add_up() -> None:
    model = llava(sharp=2.0)
    pipeline = Pipeline(
        {"name": "mustdrop", "threshold": 0.6, "merge_layer": 1}, {"name": "fastv", "keep_tokens": 7}, "mustdrop"
    )
    with pipeline.attach(model) as trace:
        generate(model, 2, input_ids=prompt(36, 4, 6), pixel_values=pixels())
    record = trace.last
    fates = record.fate[0]
    assert len(fates) == 36
    last = set(record.kept[-1][0].tolist())
    for patch, fate in enumerate(fates):
        assert fate.kind in ("kept", "merged", "dropped")
        if fate.kind == "kept":
            assert patch in last
        elif fate.kind == "merged":
            assert fate.into in last
            assert fate.into != patch
        else:
            assert fate.stage == "prefill"
            assert fate.where == 1
            assert fate.into not in last
    assert {fate.into for fate in fates if fate.kind != "dropped"} == last
    assert set(record.protected[0].tolist()) <= last
    words = record.summary()
    assert "36 image tokens" in words
    assert f"{int(record.after_vision)} after the vision stage" in words
    assert "key tokens" in words
