from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig

from tests.measure.strategies import Fewer, Halves, Loud, Salient, Window
from tests.measure.tiny_models import TEXT, counted, llava, prompt, qwen
from tokcomp.errors import ConfigurationError, UnsupportedError
from tokcomp.measure.flops import count
from tokcomp.measure.record import workload_from_record
from tokcomp.measure.schedule import Expected, expected_workload
from tokcomp.measure.shape import ModelShape, named_shape
from tokcomp.pipeline import Pipeline

SHAPE = named_shape("llava-1.5-7b")


def expect(text_before: int = 35, assume: dict[str, float] | None = None, new_tokens: int = 1, images: int = 1,
           summed: bool = False, **stages: object) -> Expected:  # fmt: skip
    pipeline = Pipeline(**stages)  # type: ignore[arg-type]
    return expected_workload(SHAPE, pipeline, image_tokens=576, text_tokens=64, text_before=text_before, assume=assume,
                             new_tokens=new_tokens, images=images, summed=summed)  # fmt: skip


def test_without_strategies_it_is_the_unmodified_model() -> None:
    plain = expected_workload(SHAPE, None, image_tokens=576, text_tokens=64, new_tokens=3)
    assert plain.workload.images[0].tower_tokens == (577,) * 24
    assert plain.workload.layer_tokens == (640,) * 32
    assert plain.workload.decode_lengths == ((641,) * 32, (642,) * 32)
    assert plain.after_vision == plain.equivalent_tokens == plain.published_tokens == 576
    assert plain.assumptions == ()


def test_a_reducer_after_a_block_shortens_the_blocks_behind_it_and_the_unneeded_ones_do_not_run() -> None:
    image = expect(vision=Halves()).workload.images[0]
    assert image.tower_tokens == (577,) * 4 + (289,) * 19
    assert image.mlp_tokens is None
    assert image.projector_tokens == 288


def test_a_reducer_between_attention_and_mlp_shortens_its_own_mlp() -> None:
    # ToMe takes 16 of 577 tokens in every block; the features are those of block 22.
    image = expect(vision={"name": "tome", "r": 16}).workload.images[0]
    assert image.tower_tokens == tuple(577 - 16 * block for block in range(23)) + image.tower_tokens[23:]
    assert image.mlp_tokens is not None
    assert image.mlp_tokens[:23] == tuple(577 - 16 * (block + 1) for block in range(23))
    assert image.projector_tokens == 208


def test_two_filters_one_after_the_other() -> None:
    expected = expect(prefill=Fewer())
    assert expected.vision_tokens == (576,) * 5 + (100,) * 3 + (10,) * 24
    assert expected.leaving == (576,) * 4 + (100,) * 3 + (10,) * 25
    assert expected.workload.layer_tokens[5] == 164
    assert expected.equivalent_tokens == (5 * 576 + 3 * 100 + 24 * 10) / 32
    scores = expected.workload.scores
    assert [(s.rows, s.keys) for s in scores] == [(29, 640), (29, 164)]


def test_fastv_keeps_what_its_budget_says() -> None:
    expected = expect(prefill={"name": "fastv", "layer": 2, "keep_ratio": 0.25})
    assert expected.vision_tokens == (576,) * 2 + (144,) * 30


def test_a_filter_after_a_reducer_sees_what_is_left() -> None:
    expected = expect(vision=Halves(), prefill={"name": "fastv", "layer": 3, "keep_ratio": 0.5})
    assert expected.vision_tokens == (288,) * 3 + (144,) * 29


def test_images_add_up() -> None:
    expected = expect(vision=Halves(), prefill={"name": "fastv", "layer": 2, "keep_tokens": 100}, images=2)
    assert len(expected.workload.images) == 2
    assert expected.after_vision == 576
    assert expected.vision_tokens[1:3] == (576, 100)


def test_a_policy_that_acts_at_every_step() -> None:
    expected = expect(cache=Window(), new_tokens=4)
    assert expected.cache_lengths == (640,) + (30,) * 31
    # Each step reads its own entry too, before anything leaves.
    assert [step[0] for step in expected.workload.decode_lengths] == [641, 642, 643]
    assert [step[5] for step in expected.workload.decode_lengths] == [31, 31, 31]


def test_h2o_counts_its_scores() -> None:
    expected = expect(cache={"name": "h2o", "heavy_tokens": 20, "recent_tokens": 12}, new_tokens=3)
    assert expected.cache_lengths == (32,) * 32
    assert [step[31] for step in expected.workload.decode_lengths] == [33, 33]
    # All prompt rows once, queries times keys: half of the prefill's attention rectangle; then one row per step.
    assert count(SHAPE, expected.workload).selection == 32 * (2 * 640 * 640 * 4096 + 2 * 2 * 33 * 4096)


def test_sums_that_come_with_the_attention_cost_no_product() -> None:
    h2o = {"name": "h2o", "heavy_tokens": 20, "recent_tokens": 12}
    assert count(SHAPE, expect(cache=h2o, new_tokens=3, summed=True).workload).selection == 32 * (2 * 2 * 33 * 4096)
    mixed = {
        "name": "by_layer",
        "ranges": [{"policy": h2o}, {"first_layer": 4, "policy": {"name": "snapkv", "keep_tokens": 40}}],
    }
    scores = expect(cache=mixed, summed=True).workload.scores
    assert [(work.rows, work.keys) for work in scores] == [(29, 640)] * 28, (
        "rows that a policy names are made by themselves"
    )
    for cache in ("snapkv", "tova"):
        assert expect(cache=cache, summed=True).workload == expect(cache=cache).workload


def test_the_mustdrop_cache_follows_the_filter() -> None:
    expected = expect(prefill=Fewer(), cache={"name": "mustdrop", "first_layer": 2})
    assert expected.cache_lengths == (640,) * 2 + (74,) * 30


def test_content_dependent_counts_need_an_assumption() -> None:
    with pytest.raises(ConfigurationError, match=r"how many tokens prefill .* depends on the image.*assume="):
        expect(prefill=Salient())


def test_an_assumed_cache_grows_from_what_is_assumed() -> None:
    with pytest.raises(ConfigurationError, match=r"how many tokens cache .* depends"):
        expect(cache=Loud())
    expected = expect(cache=Loud(), assume={"cache": 200}, new_tokens=3)
    assert expected.cache_lengths == (200,) * 32
    assert [step[7] for step in expected.workload.decode_lengths] == [201, 202]


def test_a_plain_language_model_has_a_cache_only() -> None:
    shape = ModelShape.from_config(LlamaConfig(**TEXT))
    pipeline = Pipeline(cache={"name": "h2o", "heavy_tokens": 4, "recent_tokens": 4})
    expected = expected_workload(shape, pipeline, image_tokens=0, text_tokens=50, images=0, new_tokens=2)
    assert expected.cache_lengths == (8,) * 3
    assert expected.workload.images == ()
    assert expected.workload.layer_tokens == (50,) * 3
    assert count(shape, expected.workload).tower == 0


def test_an_assumed_mean_is_met_exactly_and_reported() -> None:
    expected = expect(prefill=Salient(), assume={"prefill": 100})
    # Layers 0 and 1 put out all 576 tokens, so that (3200 - 2 * 576) / 30 are left in the others.
    assert expected.published_tokens == pytest.approx(100)
    assert expected.vision_tokens == (576,) * 3 + (pytest.approx(2048 / 30),) * 29
    assert len(expected.assumptions) == 1
    assert "100 tokens assumed, as given" in expected.assumptions[0]


@pytest.mark.parametrize(
    ("thresholds", "tokens", "merged"),
    [((0.001, 0.001), 192, 576), ((0.0012, 0.001), 128, 576), ((0.011, 0.01), 64, 462)],
)
def test_published_mustdrop_settings_come_with_their_numbers(
    thresholds: tuple[float, float], tokens: int, merged: int
) -> None:
    prefill = {"name": "mustdrop", "global_threshold": thresholds[0], "individual_threshold": thresholds[1]}
    expected = expect(vision="mustdrop", prefill=prefill, cache="mustdrop")
    assert expected.published_tokens == pytest.approx(tokens)
    assert expected.after_vision == merged
    assert [stage.split(" ")[0] for stage in expected.assumptions] == ["vision", "prefill"]
    left = round((tokens * 32 - 2 * merged) / 30)
    assert left >= math.ceil(0.08 * merged)  # the key tokens
    assert expected.cache_lengths == (64 + merged,) * 2 + (64 + left,) * 30
    image = expected.workload.images[0]
    # Block 23 runs only for its attention, which chooses the key tokens.
    assert image.tower_tokens == (577,) + (merged + 1,) * 23
    assert image.mlp_tokens == (*image.tower_tokens[:23], 0)


def test_key_tokens_limit_what_can_be_assumed() -> None:
    prefill = {"name": "mustdrop", "global_threshold": 0.011, "individual_threshold": 0.01}
    with pytest.raises(ConfigurationError, match=r"cannot be.*47 of them are key tokens.*fewer vision tokens"):
        expect(vision="mustdrop", prefill=prefill, assume={"vision": 576})


def test_a_published_mean_is_per_image() -> None:
    prefill = {"name": "mustdrop", "global_threshold": 0.011, "individual_threshold": 0.01}
    expected = expect(vision="mustdrop", prefill=prefill, images=2)
    assert expected.published_tokens == pytest.approx(128)
    assert expected.after_vision == 2 * 462


def test_assumed_merging_shortens_the_tower() -> None:
    expected = expect(vision="mustdrop", assume={"vision": 300})
    assert expected.workload.images[0].tower_tokens == (577,) + (301,) * 23
    assert expected.after_vision == expected.workload.images[0].projector_tokens == 300


def test_key_tokens_survive_every_filter() -> None:
    # 8 % of 576 are 47 key tokens, more than the filter's budget.
    expected = expect(vision="mustdrop", prefill={"name": "fastv", "layer": 2, "keep_tokens": 20})
    assert expected.vision_tokens[3] >= 47


@pytest.mark.parametrize(
    ("assume", "message"),
    [
        ({"vision": 10}, "assume names vision"),
        ({"prefil": 10}, "did you mean 'prefill'"),
        ({"prefill": 0.5}, "at least 1"),
        ({"vision": 600}, "600 vision tokens are assumed to be left of 576"),
        ({"prefill": 20}, r"a mean of 20 vision tokens cannot be.*more prefill tokens or fewer vision"),
        ({"prefill": 580}, r"a mean of 580 vision tokens cannot be.*fewer prefill tokens or more vision"),
    ],
)
def test_assumptions_that_cannot_be_are_refused(assume: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        expect(vision=Halves() if "vision" in assume else None, prefill=Salient(), assume={"prefill": 60} | assume)


def test_sizes_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="577 image tokens are no grid of 24 x 24"):
        expected_workload(SHAPE, None, image_tokens=577, text_tokens=5)
    with pytest.raises(ConfigurationError, match="no grid of 4 x 9"):
        expected_workload(SHAPE, None, image_tokens=40, text_tokens=5, grid=(4, 9))
    with pytest.raises(ConfigurationError, match="text_before=6"):
        expected_workload(SHAPE, None, image_tokens=576, text_tokens=5, text_before=6)


def test_reducers_inside_a_merging_tower_are_refused() -> None:
    shape = ModelShape.from_config(qwen("qwen2_5_vl").config)
    with pytest.raises(UnsupportedError, match="patches are merged 4 to 1"):
        expected_workload(shape, Pipeline(vision=Halves()), image_tokens=16, text_tokens=5)


@pytest.mark.parametrize(
    "stages",
    [
        {"vision": {"name": "tome", "r": 1, "proportional_attention": True}},
        {"vision": {"name": "uniform", "keep_tokens": 9}, "prefill": {"name": "fastv", "layer": 1, "keep_tokens": 3}},
        {"prefill": {"name": "fastv", "layer": 1, "keep_ratio": 0.5}},
    ],
)
def test_expected_counts_are_those_of_a_real_run(stages: dict[str, object]) -> None:
    """The model runs compressed under PyTorch's counter: tower, projector and layers cost what was expected."""
    model = llava()
    pipeline = Pipeline(**stages)  # type: ignore[arg-type]
    with pipeline.attach(model):
        _, parts = counted(lambda: model(input_ids=prompt(16, 9), pixel_values=torch.randn(1, 3, 56, 56)))
    shape = ModelShape.from_config(model.config)
    workload = expected_workload(shape, pipeline, image_tokens=16, text_tokens=9, text_before=2).workload
    name = "LlavaForConditionalGeneration.model"
    image = workload.images[0]
    mlp = image.mlp_tokens or image.tower_tokens
    tower = [parts.get(f"{name}.vision_tower.encoder.layers.{block}.mlp", 0) for block in range(4)]
    assert tower[: len(mlp)] == [tokens * 4 * 48 * 96 for tokens in mlp]
    assert not any(tower[len(mlp) :])
    flops = count(shape, workload)
    assert flops.projector == parts[f"{name}.multi_modal_projector"]
    for layer, tokens in enumerate(workload.layer_tokens):
        assert parts[f"{name}.language_model.layers.{layer}.mlp"] == tokens * 2 * 3 * 64 * 112
    # Whole layers too: what the runner computes on top (score rows) is the selection's part.
    measured = sum(parts[f"{name}.language_model.layers.{layer}"] for layer in range(3))
    scores = sum(2 * work.rows * work.keys * 64 for work in workload.scores if work.part == "language")
    assert flops.prefill + scores == measured


def test_sums_of_a_real_run_cost_no_product() -> None:
    """The layers cost what they cost without a policy."""
    model, pipeline = llava(), Pipeline(cache={"name": "h2o", "heavy_tokens": 5, "recent_tokens": 4})
    model.set_attn_implementation("sdpa")
    with pipeline.attach(model) as trace:
        _, parts = counted(lambda: model(input_ids=prompt(16, 9), pixel_values=torch.randn(1, 3, 56, 56)))
    shape = ModelShape.from_config(model.config)
    work = workload_from_record(trace.last, shape, pipeline=pipeline)
    assert work.scores == ()
    assert expected_workload(shape, pipeline, image_tokens=16, text_tokens=9, summed=True).workload.scores == ()
    for layer, wanted in enumerate(count(shape, work).prefill_layers):
        assert parts[f"LlavaForConditionalGeneration.model.language_model.layers.{layer}"] == wanted
