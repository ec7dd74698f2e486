"""Every family, one Pipeline: nothing changes with all stages off, removing equals masking, a batch equals its samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.families import Sample, families, models
from tests.models.naive import hidden_of, masked, placeholders
from tests.tiny_models import generate
from tokcomp import Pipeline
from tokcomp.models.adapter import find_adapter

every_family = pytest.mark.parametrize("name", families())
with_video = [name for name, family in families().items() if family.video is not None]

HALF = {"keep_ratio": 0.5}
PIPELINES = {
    "uniform": Pipeline(vision={"name": "uniform", **HALF}),
    "random, positions kept": Pipeline(vision={"name": "random", **HALF, "positions": "keep"}),
    "fastv": Pipeline(prefill={"name": "fastv", "layer": 2, **HALF}),
    "random+fastv": Pipeline({"name": "random", **HALF},
                             {"name": "fastv", "layer": 1, "keep_ratio": 0.4, "positions": "renumber"}),
}  # fmt: skip
BATCHED = {
    "uniform": Pipeline(vision={"name": "uniform", **HALF}),
    "random+random+h2o": Pipeline({"name": "random", **HALF}, {"name": "random", "layer": 2, **HALF},
                                  {"name": "h2o", "heavy_tokens": 8, "recent_tokens": 6}),
    "fastv": Pipeline(prefill={"name": "fastv", "layer": 2, **HALF}),
    "streaming_llm": Pipeline(cache={"name": "streaming_llm", "recent_tokens": 12}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


@every_family
def test_without_a_strategy_nothing_changes(name: str) -> None:
    model, family = models(name), families()[name]
    for sample in [family.sample(1, 0), family.batch([family.sample(2, 1), family.sample(1, 2)])]:
        dense = model(**sample).logits
        with Pipeline().attach(model) as trace:
            assert torch.equal(model(**sample).logits, dense)
        count = (sample["input_ids"] == find_adapter(model).modalities[0].token_id).sum(dim=1)
        assert trace.last.image_tokens == tuple(count.tolist())
        assert torch.equal(model(**sample).logits, dense)


@every_family
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_removing_equals_masking(name: str, pipeline: str) -> None:
    model = models(name)
    assert_equals_masked(model, families()[name].sample(2, 0), PIPELINES[pipeline])


@pytest.mark.parametrize("name", with_video)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_removing_equals_masking_in_videos(name: str, pipeline: str) -> None:
    video = families()[name].video
    assert video is not None
    assert_equals_masked(models(name), video(0), PIPELINES[pipeline])


def assert_equals_masked(model: Any, sample: Sample, pipeline: Pipeline) -> None:
    with pipeline.attach(model) as trace:
        hidden = hidden_of(model, sample)[0]
    kept: list[Tensor] = [layer[0] for layer in trace.last.kept]
    total = trace.last.image_tokens[0]
    assert 0 < len(kept[-1]) < total == len(placeholders(find_adapter(model), sample["input_ids"]))
    reference, alive = masked(model, sample, kept, pipeline)
    torch.testing.assert_close(hidden[alive], reference[alive], atol=1e-4, rtol=0)
    assert bool((hidden[~alive] == 0).all())


@every_family
@pytest.mark.parametrize("pipeline", BATCHED)
def test_a_batch_gives_what_its_samples_give(name: str, pipeline: str) -> None:
    """Different numbers and sizes of images, other lengths of text."""
    assert_batch_equals_singles(name, BATCHED[pipeline], [(1, 0), (2, 1), (1, 3)])


@every_family
def test_a_batch_may_hold_samples_without_images(name: str) -> None:
    if name == "llava_onevision_scaled":
        pytest.skip("its samples have one image each")
    assert_batch_equals_singles(name, BATCHED["uniform"], [(1, 0), (0, 1), (2, 2)])


def assert_batch_equals_singles(
    name: str, pipeline: Pipeline, shapes: list[tuple[int, int]], *, steps: int = 2
) -> None:
    model, family = models(name), families()[name]
    samples = [family.sample(images, seed) for images, seed in shapes]
    with pipeline.attach(model) as trace:
        whole = generate(model, steps, **family.batch(samples))
        together = trace.last
        for i, sample in enumerate(samples):
            one = generate(model, steps, **sample)
            # A prompt of text alone runs as without tokcomp, and leaves no trace.
            for layer, tensors in enumerate(trace.last.kept if shapes[i][0] else ()):
                assert torch.equal(tensors[0], together.kept[layer][i]), (i, layer)
            for step, logits in enumerate(one.logits):
                torch.testing.assert_close(logits[0], whole.logits[step][i], atol=1e-4, rtol=0)
