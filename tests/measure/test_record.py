from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from tests.measure.tiny_models import counted
from tests.models.families import families
from tokcomp.errors import ConfigurationError
from tokcomp.measure.flops import count
from tokcomp.measure.record import workload_from_record
from tokcomp.measure.schedule import expected_workload
from tokcomp.measure.shape import ModelShape, named_shape
from tokcomp.measure.workload import dense_workload
from tokcomp.pipeline import Pipeline

SHAPE: ModelShape = replace(named_shape("llava-1.5-7b"), layers=4)


@dataclass
class Recorded:
    """A trace's record of a batch of two: the first sample has one image, the second two."""

    sequence_tokens: list[Any] = field(default_factory=lambda: [(640, 1200)] * 2 + [(352, 624)] * 2)
    vision_tokens: list[Any] = field(default_factory=lambda: [(576, 1152)] * 2 + [(288, 576)] * 2)
    cache_lengths: list[Any] = field(default_factory=lambda: [(642, 1202)] * 2 + [(354, 626.5)] * 2)
    rows_of: tuple[int, ...] = (1, 2)
    tower_tokens: list[Any] = field(default_factory=lambda: [torch.tensor([577, 577, 577])] * 24)
    projector_tokens: Any = field(default_factory=lambda: torch.tensor([576, 576, 500]))


def test_one_sample_of_a_batch_is_read() -> None:
    work = workload_from_record(Recorded(), SHAPE, sample=1, new_tokens=3, logits_rows=None)
    assert work.text_tokens == 48
    assert work.layer_tokens == (1200, 1200, 624, 624)
    assert work.vision_tokens == (1152, 1152, 576, 576)
    assert [image.projector_tokens for image in work.images] == [576, 500]
    assert [image.patches for image in work.images] == [576, 576]
    assert work.logits_rows == 624
    # The record was taken after two steps, each of which added one entry.
    assert work.decode_lengths == ((1201, 1201, 625.5, 625.5), (1202, 1202, 626.5, 626.5))


def test_recorded_integers_stay_integers() -> None:
    work = workload_from_record(Recorded(), SHAPE, new_tokens=2)
    numbers = [
        *work.layer_tokens,
        *work.decode_lengths[0],
        *work.images[0].tower_tokens,
        work.images[0].projector_tokens,
    ]
    assert all(isinstance(number, int) for number in numbers)


def test_an_unmodified_run_is_the_dense_workload() -> None:
    record = Recorded(
        sequence_tokens=[(640,)] * 4,
        vision_tokens=[(576,)] * 4,
        cache_lengths=[(642,)] * 4,
        rows_of=(1,),
        tower_tokens=[[577]] * 24,
        projector_tokens=[576],
    )
    recorded = workload_from_record(record, SHAPE, pipeline=Pipeline(), new_tokens=3)
    dense = dense_workload(SHAPE, image_tokens=576, text_tokens=64, new_tokens=3)
    assert recorded == replace(dense, images=(replace(dense.images[0], pooled=577),))


@pytest.mark.parametrize(
    "stages",
    [
        {"vision": {"name": "tome", "r": 16}},
        {"vision": "mustdrop", "prefill": {"name": "fastv", "layer": 1, "keep_ratio": 0.5}},
        {"cache": {"name": "h2o", "heavy_tokens": 20, "recent_tokens": 12}},
    ],
)
def test_a_record_of_what_was_expected_gives_the_expected_workload(stages: dict[str, Any]) -> None:
    """Which blocks ran and which scores were computed is told from the pipeline, in both."""
    pipeline = Pipeline(**stages)
    expected = expected_workload(SHAPE, pipeline, image_tokens=576, text_tokens=64, text_before=35, new_tokens=3)
    image = expected.workload.images[0]
    entering = [*image.tower_tokens, *[image.pooled] * (24 - len(image.tower_tokens))]
    record = Recorded(
        sequence_tokens=[(tokens,) for tokens in expected.workload.layer_tokens],
        vision_tokens=[(tokens,) for tokens in expected.vision_tokens],
        cache_lengths=[],
        rows_of=(1,),
        tower_tokens=[[tokens] for tokens in entering],
        projector_tokens=[image.projector_tokens],
    )
    record.decode_lengths = [[(length,) for length in step] for step in expected.workload.decode_lengths]  # type: ignore[attr-defined]
    recorded = workload_from_record(record, SHAPE, pipeline=pipeline, new_tokens=3, text_rows=29)
    assert replace(recorded, images=()) == replace(expected.workload, images=())
    assert replace(recorded.images[0], pooled=image.pooled) == image


def test_a_policy_that_evicts_while_decoding_needs_recorded_lengths() -> None:
    pipeline = Pipeline(cache={"name": "h2o", "heavy_tokens": 4, "recent_tokens": 4})
    with pytest.raises(ConfigurationError, match="'h2o' shortens the cache while decoding"):
        workload_from_record(Recorded(), SHAPE, pipeline=pipeline, new_tokens=2)
    assert workload_from_record(Recorded(), SHAPE, pipeline=pipeline, new_tokens=1).decode_lengths == ()


def test_other_numbers_of_steps_are_refused() -> None:
    record = Recorded()
    record.decode_lengths = [[(641, 1)] * 4]  # type: ignore[attr-defined]
    assert workload_from_record(record, SHAPE, new_tokens=2).decode_lengths == ((641,) * 4,)
    with pytest.raises(ConfigurationError, match="holds 1 decoding steps, but 4 new tokens take 3"):
        workload_from_record(record, SHAPE, new_tokens=4)


@pytest.mark.parametrize("family", ["llava_onevision", "llava_onevision_scaled", "llava_next"])
def test_tiles_are_counted_one_by_one(family: str) -> None:
    """Attention stays within a tile, also where the tokens of an image lie across its tiles."""
    model, sample = families()[family].model("eager"), families()[family].sample(1, 0)
    with Pipeline().attach(model) as trace:
        total, _ = counted(lambda: model(**sample))
    tiles = sample["pixel_values"].flatten(0, -4).shape[0]
    assert trace.last.rows_of == (tiles,)
    assert tiles > 1
    work = workload_from_record(trace.last, ModelShape.from_config(model.config), logits_rows=None)
    assert count(model.config, work).total == total
