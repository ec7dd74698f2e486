from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

from tests.measure.tiny_models import TEXT, counted, eager, llava, prompt, qwen
from tokcomp.errors import ConfigurationError, UnsupportedError
from tokcomp.measure.flops import FlopCount, count, count_all
from tokcomp.measure.shape import ModelShape, named_shape
from tokcomp.measure.workload import ImageWork, ScoreWork, Workload, dense_workload
from tokcomp.runner.arguments import cache_in, cache_name

TOLERANCE = 0.005
"""The counter also sees the rotary tables (an outer product per forward), which are no part of the convention."""


def near(value: float) -> Any:
    return pytest.approx(value, rel=TOLERANCE)


@pytest.fixture(autouse=True)
def _no_fast_path() -> Any:
    # SigLIP's pooling head is an nn.MultiheadAttention, whose fused inference path the counter does not see.
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.parametrize(
    ("language", "tower"), [("llama", "clip"), ("mistral", "siglip"), ("qwen2", "siglip"), ("qwen3", "clip")]
)
def test_llava_parts_equal_the_counter(language: str, tower: str) -> None:
    model = llava(language, tower)
    pixels = torch.randn(1, 3, 56, 56)
    total, parts = counted(lambda: model(input_ids=prompt(16, 9), pixel_values=pixels))
    shape = ModelShape.from_config(model.config)
    flops = count(shape, dense_workload(shape, image_tokens=16, text_tokens=9, logits_rows=25))
    name = type(model).__name__
    assert flops.total == near(total)
    assert flops.tower == near(parts[f"{name}.model.vision_tower"])
    assert flops.projector == near(parts[f"{name}.model.multi_modal_projector"])
    assert flops.prefill == near(parts[f"{name}.model.language_model"])
    assert flops.head == parts[f"{name}.lm_head"]
    assert flops.prefill_layers[1] == parts[f"{name}.model.language_model.layers.1"]
    assert flops.tower_blocks[2] == sum(
        parts[key] for key in parts if key.endswith("encoder.layers.2") and "vision_tower" in key
    )


def test_several_feature_layers_widen_the_projector() -> None:
    model = llava(vision_feature_layer=[-2, -1])
    _, parts = counted(lambda: model(input_ids=prompt(16, 5), pixel_values=torch.randn(1, 3, 56, 56)))
    flops = count(model.config, dense_workload(ModelShape.from_config(model.config), image_tokens=16, text_tokens=5))
    assert flops.projector == parts["LlavaForConditionalGeneration.model.multi_modal_projector"]


@pytest.mark.parametrize("generation", ["qwen2_vl", "qwen2_5_vl"])
def test_qwen_equals_the_counter(generation: str) -> None:
    model = qwen(generation)
    grid = torch.tensor([[1, 8, 8]])  # 4 windows of 4 x 4 patches, 16 tokens after the merger
    pixels = torch.randn(64, 3 * 2 * 14 * 14)
    ids = prompt(16, 9)
    types = (ids == 95).int()
    run = {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": grid, "mm_token_type_ids": types}
    total, parts = counted(lambda: model(**run))
    shape = ModelShape.from_config(model.config)
    flops = count(shape, dense_workload(shape, image_tokens=16, text_tokens=9, logits_rows=25))
    name = type(model).__name__
    assert flops.total == near(total)
    assert flops.tower + flops.projector == near(parts[f"{name}.model.visual"])
    assert flops.projector == parts[f"{name}.model.visual.merger"]


def test_decoding_equals_the_counter() -> None:
    model = eager(LlamaForCausalLM, LlamaConfig(**TEXT))
    ids = torch.arange(1, 31)[None]
    with torch.no_grad():
        cache = cache_in(model(input_ids=ids, use_cache=True))
    total, _ = counted(lambda: model(input_ids=ids[:, :1], **{cache_name(model): cache}))
    shape = ModelShape.from_config(model.config)
    flops = count(shape, dense_workload(shape, image_tokens=0, text_tokens=30, images=0, new_tokens=2))
    assert flops.decode + flops.decode_head == near(total)
    assert flops.decode_head == 2 * 64 * 96
    assert flops.tower == flops.projector == 0


def test_a_shortened_tower_and_shortened_layers_equal_the_counter_on_shortened_inputs() -> None:
    """Each block and layer is run alone, on as many tokens as the workload says enter it."""
    model = llava()
    blocks, layers = model.model.vision_tower.encoder.layers, model.model.language_model.layers
    rotary = model.model.language_model.rotary_emb
    tower_tokens, layer_tokens = (17, 15, 13, 11), (21, 14, 9)
    workload = Workload(
        images=(ImageWork(patches=16, tower_tokens=tower_tokens, mlp_tokens=(15, 13, 11, 11), projector_tokens=10),),
        layer_tokens=layer_tokens,
    )
    flops = count(model.config, workload)
    for block, tokens, mlp in zip(blocks, tower_tokens, (15, 13, 11, 11), strict=True):
        attention, _ = counted(lambda block=block, n=tokens: block.self_attn(torch.randn(1, n, 48)))
        rest, _ = counted(lambda block=block, n=mlp: block.mlp(torch.randn(1, n, 48)))
        assert flops.tower_blocks[list(blocks).index(block)] == attention + rest
    for number, (layer, tokens) in enumerate(zip(layers, layer_tokens, strict=True)):
        states = torch.randn(1, tokens, 64)
        angles = rotary(states, torch.arange(tokens)[None])
        measured, _ = counted(lambda layer=layer, x=states, a=angles: layer(x, position_embeddings=a))
        assert flops.prefill_layers[number] == measured


def test_llava_1_5_7b_check_figures() -> None:
    shape = named_shape("llava-1.5-7b")
    flops = count(shape, dense_workload(shape, image_tokens=576, text_tokens=64, logits_rows=640))
    tera = {part: f"{value / 1e12:.4f}" for part, value in flops.by_part().items()}
    assert tera == {"tower": "0.3819", "projector": "0.0242", "prefill": "8.5040", "decode": "0.0000",
                    "head": "0.1681", "selection": "0.0000", "total": "9.0782"}  # fmt: skip


@pytest.mark.slow
def test_llava_1_5_7b_on_the_meta_device() -> None:
    """The 7B model itself, without weights, under the counter: SDPA has a formula there."""
    with torch.device("meta"):
        config = LlavaConfig(text_config=_full_size_text(), vision_config=_full_size_vision(), image_token_index=32000)
        model = LlavaForConditionalGeneration(config).eval()
        ids = torch.zeros(1, 640, dtype=torch.long)
        pixels = torch.zeros(1, 3, 336, 336)
        # The check compares the number of placeholders with the number of features, which meta tensors do not have.
        model.model.get_placeholder_mask = lambda input_ids, inputs_embeds, image_features: torch.zeros(
            1, 640, 4096, dtype=torch.bool
        )
        total, parts = counted(lambda: model(input_ids=ids, pixel_values=pixels))
    shape = ModelShape.from_config(config)
    assert replace(shape, tied=False) == named_shape("llava-1.5-7b")
    flops = count(shape, dense_workload(shape, image_tokens=576, text_tokens=64, logits_rows=640))
    assert flops.total == near(total)
    assert flops.tower == near(parts["LlavaForConditionalGeneration.model.vision_tower"])


def _full_size_text() -> dict[str, Any]:
    return {"model_type": "llama", "vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32}  # fmt: skip


def _full_size_vision() -> dict[str, Any]:
    return {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "image_size": 336,
            "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}  # fmt: skip


def test_score_rows_are_selection_work() -> None:
    shape = named_shape("llava-1.5-7b")
    workload = dense_workload(shape, image_tokens=576, text_tokens=64)
    scores = (ScoreWork(part="language", rows=1, keys=640), ScoreWork(part="tower", rows=1, keys=577))
    flops = count(shape, replace(workload, scores=scores))
    assert flops.selection == 2 * 640 * 4096 + 2 * 577 * 1024
    assert flops.total - count(shape, workload).total == flops.selection


def test_blocks_that_do_not_run_cost_nothing() -> None:
    shape = named_shape("llava-1.5-7b")
    image = ImageWork(patches=576, tower_tokens=(577,) * 23, projector_tokens=576)
    flops = count(shape, Workload(layer_tokens=(640,) * 32, images=(image,)))
    assert flops.tower_blocks[23] == 0
    assert flops.tower_blocks[22] == flops.tower_blocks[0] > 0


def test_counts_add_up_over_samples() -> None:
    shape = named_shape("llava-1.5-7b")
    short, long = (dense_workload(shape, image_tokens=576, text_tokens=n, new_tokens=3) for n in (20, 60))
    both = count_all(shape, [short, long])
    assert both.total == count(shape, short).total + count(shape, long).total
    assert both.prefill_layers[5] == count(shape, short).prefill_layers[5] + count(shape, long).prefill_layers[5]
    assert isinstance(both, FlopCount)


def test_integer_counts_stay_exact() -> None:
    shape = named_shape("llava-1.5-13b")
    assert isinstance(count(shape, dense_workload(shape, image_tokens=576, text_tokens=64)).total, int)


def test_wrong_numbers_of_layers_are_refused() -> None:
    shape = named_shape("llava-1.5-7b")
    with pytest.raises(ValueError, match="31 entries, the model 32 layers"):
        count(shape, Workload(layer_tokens=(5,) * 31))
    image = ImageWork(patches=4, tower_tokens=(5,) * 25, projector_tokens=4)
    with pytest.raises(ValueError, match="25 entries, the tower 24 blocks"):
        count(shape, Workload(layer_tokens=(5,) * 32, images=(image,)))


def test_unknown_layouts_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"'llavva' model.*did you mean 'llava'.*family"):
        ModelShape.from_config(SimpleNamespace(model_type="llavva"))
    text = SimpleNamespace(model_type="mixtral", hidden_size=8)
    vision = SimpleNamespace(model_type="clip_vision_model", image_size=28, patch_size=14, hidden_size=8,
                             intermediate_size=8, num_attention_heads=2, num_hidden_layers=2, num_channels=3)  # fmt: skip
    fields = {"model_type": "llava", "vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
    with pytest.raises(UnsupportedError, match="'mixtral' language model"):
        ModelShape.from_config(SimpleNamespace(**fields, text_config=text, vision_config=vision))
    with pytest.raises(UnsupportedError, match="'dinov2' vision tower"):
        ModelShape.from_config(
            SimpleNamespace(**fields, text_config=text, vision_config=SimpleNamespace(model_type="dinov2"))
        )


def test_unknown_shape_names_are_refused_with_the_near_name() -> None:
    with pytest.raises(ConfigurationError, match=r"'llava-1.5-8b'; did you mean 'llava-1.5-7b'"):
        named_shape("llava-1.5-8b")


def test_images_need_a_tower() -> None:
    shape = ModelShape.from_config(LlamaConfig(**TEXT))
    with pytest.raises(ConfigurationError, match="no vision tower"):
        dense_workload(shape, image_tokens=16, text_tokens=4)


def test_a_window_bounds_what_a_row_attends_to() -> None:
    shape = named_shape("gemma3-4b")
    assert shape.windows[:7] == (1024,) * 5 + (None, 1024)
    layers = count(shape, Workload(layer_tokens=(3000,) * shape.layers, decode_lengths=((3001,) * shape.layers,)))
    heads = shape.heads * shape.head_dim
    # The rectangle of queries and keys, 2 * 2 * q * k * head_dim per head, of which a window leaves 1024 keys.
    assert layers.prefill_layers[5] - layers.prefill_layers[0] == 4 * 3000 * (3000 - 1024) * heads
    assert layers.decode_layers[5] - layers.decode_layers[0] == 4 * (3001 - 1024) * heads
    within = count(shape, Workload(layer_tokens=(1000,) * shape.layers))
    assert len(set(within.prefill_layers)) == 1
