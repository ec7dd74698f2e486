"""Tiny LLaVAs of all kinds, and prompts for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
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
    config = VipLlavaConfig(vision_config=clip_config(), text_config=text_config(), image_token_index=IMAGE,
                            vision_feature_layer=[-2, 1])  # fmt: skip
    return ready(config, VipLlavaForConditionalGeneration, attention)


# -- tiles -----------------------------------------------------------------------------------------------------------


def tiled_tokens(size: tuple[int, int]) -> int:
    """Placeholders of an image of ``size``: the base image, and the stitched and unpadded tiles with a newline a row."""
    tiles = image_size_to_num_patches(size, PINPOINTS, SIDE) - 1
    rows, columns = (1, tiles) if tiles == 2 and size[1] > size[0] else (tiles, 1) if tiles == 2 else (2, 2)
    side = SIDE // PATCH
    _, height, width = unpad_image(torch.zeros(1, rows * side, columns * side), size).shape
    return side * side + height * (width + 1)


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
