"""New images in later turns on a compressed cache, against the whole conversation at full length in which nothing is removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.models.families import families
from tests.runner.conversation import answer, converse, reference, whole
from tokcomp import Pipeline

UNIFORM = {"name": "uniform", "keep_ratio": 0.5}
FASTV = {"name": "fastv", "layer": 2, "keep_ratio": 0.5}
FILTER = {"name": "mustdrop", "layers": (1, 2), "global_threshold": 0.03, "individual_threshold": 0.1}
SNAPKV = {"name": "snapkv", "keep_ratio": 0.6, "window": 3}
PIPELINES = {
    "uniform, positions kept": Pipeline(vision={**UNIFORM, "positions": "keep"}),
    "fastv": Pipeline(prefill=FASTV),
    "mustdrop filter": Pipeline(prefill=FILTER),
    "pyramiddrop": Pipeline(prefill="pyramiddrop"),
    "snapkv": Pipeline(cache=SNAPKV),
    "h2o": Pipeline(cache={"name": "h2o", "heavy_tokens": 8, "recent_tokens": 6}),
    "h2o, hiding": Pipeline(cache={"name": "h2o", "heavy_tokens": 8, "recent_tokens": 6, "eviction": "mask"}),
    "adakv": Pipeline(cache={"name": "adakv", "base": SNAPKV}),
    "mustdrop cache": Pipeline(prefill=FILTER, cache="mustdrop"),
    "all stages": Pipeline(UNIFORM, {**FASTV, "positions": "renumber"}, {"name": "h2o", "heavy_tokens": 6, "recent_tokens": 6}),
}  # fmt: skip
KINDS = ("llava", "llava_next", "internvl", "gemma3", "paligemma", "qwen2_vl", "qwen3_vl")
MUSTDROP = Pipeline({"name": "mustdrop", "threshold": 0.6, "merge_layer": 1, "order": "image"}, FILTER, "mustdrop")


def same(family: str, pipeline: Pipeline, attention: str = "sdpa", turns: Sequence[Any] = ()) -> None:
    one = families()[family]
    model = one.model(attention)
    turns = turns or [one.sample(1, 0), answer(3, 1), one.sample(2, 2), answer(2, 3), one.sample(1, 4), answer(2, 4)]
    with pipeline.attach(model) as trace, torch.no_grad():
        heard = converse(model, turns, trace)
    assert len(trace.requests) == sum(len(turn) > 1 for turn in turns)
    with torch.no_grad():
        expected = reference(model, whole(one, turns), heard, pipeline)
    for got, want in zip(heard, expected, strict=True):
        torch.testing.assert_close(got.hidden.masked_fill(want == 0, 0.0), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("name", PIPELINES)
def test_removing_equals_masking(family: str, name: str) -> None:
    same(family, PIPELINES[name])


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen3_vl"])
def test_all_of_mustdrop(family: str) -> None:
    same(family, MUSTDROP)


@pytest.mark.parametrize("name", ["all stages", "adakv"])
@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_5_vl"])
def test_eager_attention(family: str, name: str) -> None:
    same(family, PIPELINES[name], "eager")


@pytest.mark.parametrize("name", ["all stages", "adakv"])
@pytest.mark.parametrize("family", sorted({*KINDS} - {"paligemma"}))  # which reads text alone in both directions
def test_the_first_turn_may_be_text_alone(family: str, name: str) -> None:
    """It is read as without a pipeline; from the first image on its cache is compressed like any other."""
    sample, body = families()[family].sample, families()[family].model("sdpa").model
    if hasattr(body, "rope_deltas"):
        body.rope_deltas = None  # those of another conversation, by which the model would number the text
    turns = [answer(7, 1), answer(1, 2), sample(1, 2), answer(2, 3), answer(3, 4), sample(1, 4)]
    same(family, PIPELINES[name], turns=turns)


@pytest.mark.parametrize("name", ["all stages", "adakv"])
@pytest.mark.parametrize("family", ["llava_next_video", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "glm4v"])
def test_a_video_in_a_later_turn(family: str, name: str) -> None:
    one = families()[family]
    assert one.video is not None
    first = one.video(0) if family == "glm4v" else one.sample(1, 0)  # which has one placeholder for both
    same(family, PIPELINES[name], turns=[first, answer(3, 1), one.video(1), answer(2, 3)])
