"""LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision: large images are cut into tiles, which are packed into one picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from tokcomp.models.adapter import Adapter, Call, Layout, Modality, register_adapter
from tokcomp.models.causal import decoder_of
from tokcomp.models.llava import body_of, refuse_cls_features
from tokcomp.models.towers import clip_tower, square_groups

__all__ = ["build", "build_video"]


@register_adapter("LlavaNextForConditionalGeneration", "LlavaNextModel")
def build(model: nn.Module) -> Adapter:
    """Adapter of ``LlavaNextForConditionalGeneration`` (LLaVA-NeXT, also known as LLaVA-1.6)."""
    return _adapter(
        model, "llava_next", (Modality("image", body_of(model).config.image_token_id, "get_image_features"),)
    )


@register_adapter("LlavaNextVideoForConditionalGeneration", "LlavaNextVideoModel")
def build_video(model: nn.Module) -> Adapter:
    """Adapter of ``LlavaNextVideoForConditionalGeneration``, which pools the patches of video frames."""
    config = body_of(model).config
    return _adapter(model, "llava_next_video", (
        Modality("image", config.image_token_id, "get_image_features"),
        Modality("video", config.video_token_id, "get_video_features"),
    ))  # fmt: skip


def _adapter(model: nn.Module, family: str, modalities: tuple[Modality, ...]) -> Adapter:
    body = body_of(model)

    def layout(call: Call) -> Layout:
        return _of_frames(body, call) if call.kind == "video" else _of_tiles(body, call)

    tower = clip_tower(body.vision_tower, body.multi_modal_projector, body.config.vision_feature_layer, layout=layout)
    refuse_cls_features(body.config, tower.has_cls)
    return Adapter(
        family=family,
        model=model,
        decoder=decoder_of(body.language_model),
        tower=tower,
        multimodal=body,
        modalities=modalities,
        embed=body.get_input_embeddings(),
    )


def _side(body: Any) -> int:
    vision = body.config.vision_config
    return int(vision.image_size // vision.patch_size)


def _of_tiles(body: Any, call: Call) -> Layout:
    """A base image and tiles each, packed by the model's own code: stitched, unpadded, a newline after every row."""
    config, side = body.config, _side(body)
    sizes = call.given["image_sizes"]
    tiles = [
        image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size) for size in sizes
    ]
    # Numbers instead of features: float64, in which every unit has a number of its own.
    units = torch.arange(sum(tiles) * side * side, dtype=torch.float64).view(-1, side * side, 1).split(tiles)
    newline = torch.full((1,), -1, dtype=torch.float64)
    packed, _ = body.pack_image_features(units, sizes, config.vision_feature_select_strategy, image_newline=newline)
    return Layout(
        grids=((side, side),) * sum(tiles),
        owners=tuple(image for image, count in enumerate(tiles) for _ in range(count)),
        lengths=tuple(len(image) for image in packed),
        placed=torch.cat(packed)[:, 0].long(),
    )


def _of_frames(body: Any, call: Call) -> Layout:
    """Frames, whose patches are pooled in squares before the projector."""
    side, fold = _side(body), body.config.spatial_pool_stride
    videos, frames = call.given["pixel_values_videos"].shape[:2]
    grid = side // fold, side // fold
    return Layout(
        grids=(grid,) * (videos * frames),
        owners=tuple(video for video in range(videos) for _ in range(frames)),
        lengths=(frames * grid[0] * grid[1],) * videos,
        members=(square_groups((side, side), fold),) * (videos * frames),
        patches=(side * side,) * (videos * frames),
    )
