"""What is refused before the vision tower or a layer of the language model has run, each in one line."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from tests.models.families import families, models
from tests.tiny_models import IMAGE, cached, generate, llava, pixels, prompt
from tokcomp import Pipeline
from tokcomp.errors import FeatureError, TokcompError, UnsupportedError
from tokcomp.models.adapter import find_adapter

FULL = Pipeline("uniform", "fastv", {"name": "h2o", "heavy_tokens": 12, "recent_tokens": 8})


class Computed(AssertionError):
    """A block of the model has run."""


def unused(model: Any) -> Iterator[Any]:
    """``model``, which must not compute."""

    def ran(module: Any, args: Any) -> None:
        raise Computed(type(module).__name__)

    adapter = find_adapter(model)
    parts = [adapter.decoder.layers[0], *([adapter.tower.blocks[0].module] if adapter.tower else [])]
    handles = [part.register_forward_pre_hook(ran) for part in parts]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def inputs(**other: Any) -> dict[str, Any]:
    return {"input_ids": prompt(36, 4, 6), "pixel_values": pixels(), **other}


def refused(model: Any, words: str, error: type[Exception], pipeline: Pipeline = FULL, **given: Any) -> None:
    """Both ways of calling a model refuse it."""
    asked = {name: value for name, value in given.items() if name not in _TENSORS}
    for call in ["generate"] if asked else ["forward", "generate"]:
        with pipeline.attach(model), torch.no_grad(), pytest.raises(TokcompError, match=words) as caught:
            getattr(model, call)(**given)
        assert isinstance(caught.value, error)
        assert "\n" not in str(caught.value)


_TENSORS = {"input_ids", "inputs_embeds", "pixel_values", "attention_mask"}


@pytest.fixture
def idle() -> Iterator[Any]:
    yield from unused(llava())


@pytest.mark.parametrize(("options", "words"), [
    ({"cache_implementation": "static"}, "default dynamic cache"),
    ({"cache_implementation": "offloaded"}, "default dynamic cache"),
    ({"cache_implementation": "quantized"}, "cache policy 'h2o' cannot evict from a quantized cache"),
    ({"prefill_chunk_size": 16}, "chunked prefill is not supported"),
    ({"prompt_lookup_num_tokens": 2}, "cannot be cropped"),
    ({"assistant_model": "the same"}, "cannot be cropped"),
    ({"use_cache": False}, "cache policy 'h2o' has no cache to act on"),
])  # fmt: skip
def test_ways_of_generating(idle: Any, options: dict[str, Any], words: str) -> None:
    if "assistant_model" in options:
        options = {"assistant_model": idle}
    before = {name: value.clone() for name, value in idle.state_dict().items()}
    refused(idle, words, UnsupportedError, **inputs(max_new_tokens=6, do_sample=False, **options))
    assert all(torch.equal(value, before[name]) for name, value in idle.state_dict().items())


def test_settings_of_the_model_count_as_well(idle: Any) -> None:
    kept = idle.generation_config
    idle.generation_config = copy.deepcopy(kept)
    try:
        idle.generation_config.cache_implementation = "static"
        refused(
            idle, "cache_implementation='static' cannot be compressed", UnsupportedError, **inputs(max_new_tokens=6)
        )
    finally:
        idle.generation_config = kept


@pytest.mark.parametrize("kind", ["static", "offloading"])
def test_caches_that_are_handed_over(idle: Any, kind: str) -> None:
    text = idle.config.text_config
    cache = (
        StaticCache(config=text, max_cache_len=64) if kind == "static" else DynamicCache(config=text, offloading=True)
    )
    for call in ("forward", "generate"):
        with FULL.attach(idle), torch.no_grad(), pytest.raises(UnsupportedError, match="default dynamic cache"):
            getattr(idle, call)(**inputs(), **cached(idle, cache))


@pytest.mark.parametrize(("wrong", "words"), [
    ({"input_ids": prompt(36, 4, 6).tolist()}, "input_ids is a list, expected a tensor"),
    ({"input_ids": prompt(36, 4, 6)[0]}, r"input_ids have shape \(46,\), expected \[batch, tokens\]"),
    ({"pixel_values": pixels().numpy()}, "pixel_values is a ndarray, expected a tensor"),
    ({"attention_mask": torch.ones(1, 7, dtype=torch.long)}, r"attention_mask has shape \(1, 7\), but there are 46 tokens"),
    ({"attention_mask": torch.ones(2, 46, dtype=torch.long)}, r"in each of 1 prompts"),
])  # fmt: skip
def test_inputs_of_other_types_and_shapes(idle: Any, wrong: dict[str, Any], words: str) -> None:
    refused(idle, words, FeatureError, **inputs(**wrong))


@pytest.mark.parametrize("few", [0, 35, 40])
def test_placeholders_that_disagree_with_the_images(idle: Any, few: int) -> None:
    ids = torch.cat([prompt(few, 4, 6)], dim=1) if few else torch.arange(3, 20)[None]
    refused(idle, f"the prompt has {few} image placeholders, but the images give 36 tokens", FeatureError,
            input_ids=ids, pixel_values=pixels())  # fmt: skip


def test_images_dealt_out_wrongly(idle: Any) -> None:
    """As many placeholders as features, but not in every sample."""
    ids = torch.cat([prompt(30, 10, 6), prompt(36, 4, 6)])
    ids[1, -6:] = IMAGE
    refused(idle, "sample 0 has 30 image placeholders, but its images give 36 tokens", FeatureError,
            input_ids=ids, pixel_values=pixels(2))  # fmt: skip


@pytest.mark.parametrize("name", families())
def test_placeholders_are_counted_before_the_tower_runs_in_every_family(name: str) -> None:
    for idle in unused(models(name)):
        sample = families()[name].sample(1, 0)
        ids = sample["input_ids"].clone()
        first = int((ids[0] == find_adapter(idle).modalities[0].token_id).nonzero()[0])
        ids[0, first] = 5  # the placeholder of one token less
        refused(idle, "image placeholders, but the images give", FeatureError, **{**sample, "input_ids": ids})


@pytest.mark.parametrize("shape", [(0, 3, 84, 84), (1, 3, 0, 84)])
def test_images_without_pixels(idle: Any, shape: tuple[int, ...]) -> None:
    refused(idle, "holds no pixels", FeatureError, **inputs(pixel_values=torch.zeros(shape)))


@pytest.mark.parametrize(("name", "field"), [("qwen2_vl", "image_grid_thw"), ("llava_next", "image_sizes")])
def test_sizes_of_zero(name: str, field: str) -> None:
    for idle in unused(models(name)):
        sample = families()[name].sample(1, 0)
        size = sample[field].clone()
        size[0, -1] = 0
        with Pipeline("uniform").attach(idle), pytest.raises(FeatureError, match=rf"{field} .* without pixels"):
            idle(**{**sample, field: size})


def test_dtypes_and_devices(idle: Any) -> None:
    refused(
        idle,
        "pixel_values is torch.int64, expected floating-point",
        FeatureError,
        **inputs(pixel_values=pixels().long()),
    )
    refused(idle, "pixel_values lies on meta, but the model that reads it on cpu", FeatureError,
            **inputs(pixel_values=pixels().to("meta")))  # fmt: skip
    embeds = idle.get_input_embeddings()(prompt(36, 4, 6)).double()
    refused(idle, "inputs_embeds are torch.float64, but the language model is torch.float32", FeatureError,
            inputs_embeds=embeds, pixel_values=pixels())  # fmt: skip
    with FULL.attach(idle), pytest.raises(FeatureError, match="input_ids lies on meta"):
        idle(**inputs(input_ids=prompt(36, 4, 6).to("meta")))


@pytest.mark.parametrize(("part", "words"), [
    ("vision_tower", "the vision part has weights of several dtypes .tower torch.bfloat16, projector torch.float32."),
    ("language_model", "the language model has weights of several dtypes"),
])  # fmt: skip
def test_a_model_of_mixed_dtypes(part: str, words: str) -> None:
    mixed = copy.deepcopy(llava())
    getattr(mixed.model, part).bfloat16()
    for idle in unused(mixed):
        refused(idle, words, FeatureError, **inputs())
    with FULL.attach(mixed), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert bool(mixed(**inputs()).logits.isfinite().all())


def test_a_vision_part_may_have_a_dtype_of_its_own() -> None:
    """Models cast between the two, as pixel values are cast."""
    mixed = copy.deepcopy(models("qwen2_vl"))
    mixed.model.visual.double()
    sample = families()["qwen2_vl"].sample(1, 0)
    with Pipeline("uniform").attach(mixed) as trace, torch.no_grad():
        assert bool(mixed(**sample).logits.isfinite().all())
    assert trace.last.after_vision[0] < trace.last.image_tokens[0]


def test_prompts_of_text_are_none_of_its_business() -> None:
    model, ids = llava(sharp=2.0), torch.arange(3, 12)[None]
    expected = generate(model, 4, input_ids=ids, prompt_lookup_num_tokens=2).sequences
    with FULL.attach(model):
        assert torch.equal(generate(model, 4, input_ids=ids, prompt_lookup_num_tokens=2).sequences, expected)
