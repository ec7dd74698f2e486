"""Tiny LLaVAs of all kinds, and prompts for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GemmaConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches, unpad_image

from tests.models.families import Sample, batch_of, family, roughen, spread

IMAGE, VIDEO = 199, 198
SIDE, PATCH = 56, 14  # 4 x 4 patches
PINPOINTS = [[56, 112], [112, 56], [112, 112]]
SIZES = [(60, 100), (100, 52), (90, 84), (40, 112), (70, 70)]


def text_config(**fields: Any) -> LlamaConfig:
    return LlamaConfig(**{"vocab_size": 200, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5,
                          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
                          "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **fields})  # fmt: skip


def clip_config(**fields: Any) -> CLIPVisionConfig:
    return CLIPVisionConfig(**{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
                               "image_size": SIDE, "patch_size": PATCH, "projection_dim": 32, **fields})  # fmt: skip


def ready(config: Any, built: Any, attention: str) -> Any:
    torch.manual_seed(0)
    config._attn_implementation = attention
    return roughen(built(config))


def pictures(shape: Sequence[int], seed: int) -> Tensor:
    """Random pixels with flat regions, so that there is something to merge."""
    generator = torch.Generator().manual_seed(100 + seed)
    coarse = torch.randn(*shape[:-2], 3, 3, generator=generator)
    image = nn.functional.interpolate(coarse.flatten(0, -4), size=shape[-2:], mode="nearest").view(shape)
    return image + 0.3 * torch.randn(shape, generator=generator)


# -- one row of the tower per image ----------------------------------------------------------------------------------


def plain(images: int, seed: int, *, tokens: int = 16, side: int = SIDE) -> Sample:
    """A prompt for a family that takes every image in one size."""
    sample: Sample = {"input_ids": spread([[IMAGE] * tokens] * images, seed=seed)}
    return sample if not images else {**sample, "pixel_values": pictures((images, 3, side, side), seed)}


@family("llava", plain)
def llava(attention: str) -> Any:
    config = LlavaConfig(vision_config=clip_config(), text_config=text_config(), image_token_index=IMAGE)
    return ready(config, LlavaForConditionalGeneration, attention)


@family("vipllava", plain)
def vipllava(attention: str) -> Any:
    older = hasattr(VipLlavaConfig, "vision_feature_layers")  # the field's name in transformers 5.18
    layers = {"vision_feature_layers" if older else "vision_feature_layer": [-2, 1]}
    config = VipLlavaConfig(vision_config=clip_config(), text_config=text_config(), image_token_index=IMAGE, **layers)
    return ready(config, VipLlavaForConditionalGeneration, attention)


TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
WIDE = 112  # 8 x 8 patches, which become 4 x 4 units


def wide(images: int, seed: int) -> Sample:
    return plain(images, seed, side=WIDE)


@family("internvl", wide)
def internvl(attention: str) -> Any:
    vision = {**TOWER, "image_size": [WIDE, WIDE], "patch_size": [PATCH, PATCH]}
    config = InternVLConfig(vision_config=vision, text_config=text_config(), image_token_id=IMAGE)
    return ready(config, InternVLForConditionalGeneration, attention)


@family("aya_vision", wide)
def aya_vision(attention: str) -> Any:
    vision = {"model_type": "siglip_vision_model", **TOWER, "image_size": WIDE, "patch_size": PATCH}
    config = AyaVisionConfig(vision_config=vision, text_config=text_config(), image_token_index=IMAGE)
    return ready(config, AyaVisionForConditionalGeneration, attention)


SMALL_TEXT = {"vocab_size": 200, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5, "num_attention_heads": 4,
              "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
              "pad_token_id": 0}  # fmt: skip


def typed(sample: Sample, *, prefix: bool = False) -> Sample:
    """With the types by which the model lets tokens see each other: those of an image, or all of the prompt."""
    ids = sample["input_ids"]
    return {**sample, "token_type_ids": torch.zeros_like(ids) if prefix else (ids == IMAGE).long()}


@family("gemma3", lambda images, seed: typed(wide(images, seed)))
def gemma3(attention: str) -> Any:
    vision = {**TOWER, "image_size": WIDE, "patch_size": PATCH}
    kinds = ["sliding_attention", "full_attention"] * 2 + ["full_attention"]
    text = {**SMALL_TEXT, "sliding_window": 64, "query_pre_attn_scalar": 8, "layer_types": kinds}
    config = Gemma3Config(vision_config=vision, text_config=text, mm_tokens_per_image=16, image_token_index=IMAGE)
    return ready(config, Gemma3ForConditionalGeneration, attention)


@family("paligemma", lambda images, seed: typed(plain(images, seed), prefix=True))
def paligemma(attention: str) -> Any:
    vision = {
        "model_type": "siglip_vision_model",
        **TOWER,
        "image_size": SIDE,
        "patch_size": PATCH,
        "projection_dim": 32,
    }
    config = PaliGemmaConfig(vision_config=vision, text_config=GemmaConfig(**SMALL_TEXT), image_token_index=IMAGE,
                             projection_dim=32, hidden_size=32)  # fmt: skip
    return ready(config, PaliGemmaForConditionalGeneration, attention)


# -- images within samples -------------------------------------------------------------------------------------------


def sampled(images: int, seed: int) -> Sample:
    """One more axis: the images of each sample."""
    sample = wide(images, seed)
    return {name: value[None] if name == "pixel_values" else value for name, value in sample.items()}


def batch_of_samples(samples: Sequence[Sample]) -> Sample:
    """Every sample has as many images as the one with most; what is missing is zero."""
    most = max((sample["pixel_values"].shape[1] for sample in samples if "pixel_values" in sample), default=0)
    blank = torch.zeros(1, most, 3, WIDE, WIDE)
    filled = []
    for sample in samples:
        pixels = sample.get("pixel_values", blank[:, :0])
        filled.append({**sample, "pixel_values": torch.cat([pixels, blank[:, pixels.shape[1] :]], dim=1)})
    return batch_of(filled)


@family("idefics3", sampled, batch=batch_of_samples)
def idefics3(attention: str) -> Any:
    config = Idefics3Config(vision_config={**TOWER, "image_size": WIDE, "patch_size": PATCH}, text_config=text_config(),
                            image_token_id=IMAGE, scale_factor=2)  # fmt: skip
    return ready(config, Idefics3ForConditionalGeneration, attention)


@family("smolvlm", sampled, batch=batch_of_samples)
def smolvlm(attention: str) -> Any:
    config = SmolVLMConfig(vision_config={**TOWER, "image_size": WIDE, "patch_size": PATCH}, text_config=text_config(),
                           image_token_id=IMAGE, scale_factor=2)  # fmt: skip
    return ready(config, SmolVLMForConditionalGeneration, attention)


# -- images of any size, one after another ---------------------------------------------------------------------------

FREE = [(56, 84), (84, 56), (112, 56), (56, 56)]


def free(images: int, seed: int, *, fold: int = 2) -> Sample:
    sizes = [FREE[(seed + i) % len(FREE)] for i in range(images)]
    unit = PATCH * fold
    sample: Sample = {"input_ids": spread([[IMAGE] * (h // unit * (w // unit)) for h, w in sizes], seed=seed)}
    if not images:
        return sample
    pixels = pictures((images, 3, 112, 112), seed)
    for image, (height, width) in zip(pixels, sizes, strict=True):
        image[:, height:] = image[:, :, width:] = 0
    return {**sample, "pixel_values": pixels, "image_sizes": torch.tensor(sizes)}


PIXTRAL = {"model_type": "pixtral", **TOWER, "head_dim": 8, "image_size": 112, "patch_size": PATCH}


@family("mistral3", free)
def mistral3(attention: str) -> Any:
    text = MistralConfig(**{**text_config().to_dict(), "model_type": "mistral", "sliding_window": None, "head_dim": 8})
    config = Mistral3Config(vision_config=PIXTRAL, text_config=text, image_token_index=IMAGE)
    return ready(config, Mistral3ForConditionalGeneration, attention)


@family("llava_pixtral", lambda images, seed: free(images, seed, fold=1))
def llava_pixtral(attention: str) -> Any:
    config = LlavaConfig(vision_config=PIXTRAL, text_config=text_config(), image_token_index=IMAGE, vision_feature_layer=-1,
                         vision_feature_select_strategy="full")  # fmt: skip
    return ready(config, LlavaForConditionalGeneration, attention)


# -- tiles -----------------------------------------------------------------------------------------------------------


def stitched(size: tuple[int, int]) -> Tensor:
    """The unpadded patches of all tiles but the base image's ``[1, rows, columns]``."""
    tiles = image_size_to_num_patches(size, PINPOINTS, SIDE) - 1
    rows, columns = (1, tiles) if tiles == 2 and size[1] > size[0] else (tiles, 1) if tiles == 2 else (2, 2)
    return unpad_image(torch.zeros(1, rows * SIDE // PATCH, columns * SIDE // PATCH), size)


def tiled_tokens(size: tuple[int, int]) -> int:
    """Placeholders of an image of ``size``: the base image, and the stitched and unpadded tiles with a newline a row."""
    _, height, width = stitched(size).shape
    return (SIDE // PATCH) ** 2 + height * (width + 1)


def tiled(images: int, seed: int) -> Sample:
    sizes = [SIZES[(seed + i) % len(SIZES)] for i in range(images)]
    sample: Sample = {"input_ids": spread([[IMAGE] * tiled_tokens(size) for size in sizes], seed=seed)}
    if not images:
        return sample
    tiles = max(image_size_to_num_patches(size, PINPOINTS, SIDE) for size in sizes)
    return {
        **sample,
        "pixel_values": pictures((images, tiles, 3, SIDE, SIDE), seed),
        "image_sizes": torch.tensor(sizes),
    }


def batch_of_tiles(samples: Sequence[Sample]) -> Sample:
    """Images have as many tiles as the one with most; what is missing is zero."""
    most = max((sample["pixel_values"].shape[1] for sample in samples if "pixel_values" in sample), default=0)
    padded = []
    for sample in samples:
        pixels = sample.get("pixel_values")
        missing = {} if pixels is None else {"pixel_values": nn.functional.pad(
            pixels, (0, 0, 0, 0, 0, 0, 0, most - pixels.shape[1]))}  # fmt: skip
        padded.append({**sample, **missing})
    return batch_of(padded)


@family("llava_next", tiled, batch=batch_of_tiles)
def llava_next(attention: str) -> Any:
    config = LlavaNextConfig(vision_config=clip_config(), text_config=text_config(), image_token_index=IMAGE,
                             image_grid_pinpoints=PINPOINTS)  # fmt: skip
    return ready(config, LlavaNextForConditionalGeneration, attention)


def frames(seed: int) -> Sample:
    """Three frames of 2 x 2 pooled patches."""
    return {
        "input_ids": spread([[VIDEO] * 12], seed=seed),
        "pixel_values_videos": pictures((1, 3, 3, SIDE, SIDE), seed),
    }


@family("llava_next_video", tiled, video=frames, batch=batch_of_tiles)
def llava_next_video(attention: str) -> Any:
    config = LlavaNextVideoConfig(vision_config=clip_config(), text_config=text_config(), image_token_index=IMAGE,
                                  video_token_index=VIDEO, image_grid_pinpoints=PINPOINTS)  # fmt: skip
    return ready(config, LlavaNextVideoForConditionalGeneration, attention)


def onevision(images: int, seed: int) -> Sample:
    """With several images in a sample, each of them is one tile and a newline."""
    if images <= 1:
        return {**tiled(images, seed), **({"batch_num_images": torch.tensor([1])} if images else {})}
    sample: Sample = {"input_ids": spread([[IMAGE] * 17] * images, seed=seed)}
    sizes = [SIZES[(seed + i) % len(SIZES)] for i in range(images)]
    return {**sample, "pixel_values": pictures((images, 1, 3, SIDE, SIDE), seed), "image_sizes": torch.tensor(sizes),
            "batch_num_images": torch.tensor([images])}  # fmt: skip


def pooled_frames(seed: int) -> Sample:
    """Three frames of 2 x 2 pooled patches and a newline."""
    return {
        "input_ids": spread([[VIDEO] * 13], seed=seed),
        "pixel_values_videos": pictures((1, 3, 3, SIDE, SIDE), seed),
    }


def onevision_config(**fields: Any) -> LlavaOnevisionConfig:
    vision = {"model_type": "siglip_vision_model", **TOWER, "image_size": SIDE, "patch_size": PATCH}
    return LlavaOnevisionConfig(vision_config=vision, text_config=text_config(), image_token_index=IMAGE,
                                video_token_index=VIDEO, image_grid_pinpoints=PINPOINTS, **fields)  # fmt: skip


@family("llava_onevision", onevision, video=pooled_frames, batch=batch_of_tiles)
def llava_onevision(attention: str) -> Any:
    return ready(onevision_config(), LlavaOnevisionForConditionalGeneration, attention)


def scaled_down(images: int, seed: int) -> Sample:
    """Large images, whose stitched tiles are scaled down to about the patches of one tile."""
    del images
    size = SIZES[seed % 3]
    sample = tiled(1, seed % 3)
    _, height, width = stitched(size).shape
    ratio = (height * width / 16) ** 0.5
    tokens = 16 + int(height // ratio) * (int(width // ratio) + 1)
    return {**sample, "input_ids": spread([[IMAGE] * tokens], seed=seed), "batch_num_images": torch.tensor([1])}


@family("llava_onevision_scaled", scaled_down, batch=batch_of_tiles)
def llava_onevision_scaled(attention: str) -> Any:
    config = onevision_config(vision_aspect_ratio="anyres_max_1")
    return ready(config, LlavaOnevisionForConditionalGeneration, attention)
