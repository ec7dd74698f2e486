"""LLaVA-OneVision: tiles as in LLaVA-NeXT, which are scaled down where there are many of them; pooled frames."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llava_onevision.modeling_llava_onevision import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
)

from tokcomp.models.adapter import Adapter, Call, Layout, Modality, register_adapter
from tokcomp.models.causal import decoder_of
from tokcomp.models.llava import body_of, refuse_cls_features
from tokcomp.models.towers import clip_tower

__all__ = ["build"]


@register_adapter("LlavaOnevisionForConditionalGeneration", "LlavaOnevisionModel")
def build(model: nn.Module) -> Adapter:
    """Adapter of ``LlavaOnevisionForConditionalGeneration`` (arXiv 2408.03326)."""
    body = body_of(model)
    config = body.config

    def layout(call: Call) -> Layout:
        return _of_frames(body, call) if call.kind == "video" else _of_tiles(body, call)

    tower = clip_tower(body.vision_tower, body.multi_modal_projector, config.vision_feature_layer, layout=layout,
                       late=("pack_image_features", "apply_pooling"))  # fmt: skip
    refuse_cls_features(config, tower.has_cls)
    return Adapter(
        family="llava_onevision",
        model=model,
        decoder=decoder_of(body.language_model),
        tower=tower,
        multimodal=body,
        modalities=(
            Modality("image", config.image_token_id, "get_image_features"),
            Modality("video", config.video_token_id, "get_video_features"),
        ),
        embed=body.get_input_embeddings(),
    )


def _side(body: Any) -> int:
    vision = body.config.vision_config
    return int(vision.image_size // vision.patch_size)


def _of_frames(body: Any, call: Call) -> Layout:
    """Frames whose projected patches are pooled, and one newline behind each video."""
    patches = _side(body) ** 2
    videos, frames = call.given["pixel_values_videos"].shape[:2]
    # Pooling one channel per patch tells how much of each patch is in each unit.
    weights, members = body.apply_pooling(torch.eye(patches)[None])[0].topk(4, dim=-1)
    side = round(len(members) ** 0.5)
    units = torch.arange(videos * frames * side * side).view(videos, -1)
    return Layout(
        grids=((side, side),) * (videos * frames),
        owners=tuple(video for video in range(videos) for _ in range(frames)),
        lengths=(frames * side * side + 1,) * videos,
        members=(members,) * (videos * frames),
        weights=(weights,) * (videos * frames),
        patches=(patches,) * (videos * frames),
        placed=nn.functional.pad(units, (0, 1), value=-1).flatten(),
        late="apply_pooling",
    )


def _of_tiles(body: Any, call: Call) -> Layout:
    """A base image and tiles each, packed by the model's own code: stitched, unpadded, scaled down, with newlines."""
    sizes, given = call.given["image_sizes"], call.given
    numbers = given.get("batch_num_images")
    # With several images in a sample, each of them is one tile.
    cut = (
        [True] * len(sizes)
        if numbers is None
        else [n == 1 for n in torch.as_tensor(numbers).tolist() for _ in range(n)]
    )
    config, side = body.config, _side(body)
    pinpoints, pixels = config.image_grid_pinpoints, config.vision_config.image_size
    tiles = [
        image_size_to_num_patches(size, pinpoints, pixels) if tiled else 1
        for size, tiled in zip(sizes, cut, strict=True)
    ]
    aspect = given.get("vision_aspect_ratio") or config.vision_aspect_ratio

    def pack(values: Tensor) -> list[Tensor]:
        newline = torch.full(values.shape[-1:], -1, dtype=values.dtype)
        packed: list[Tensor] = body.pack_image_features(
            values.split(tiles), sizes, image_newline=newline, vision_aspect_ratio=aspect
        )[0]
        return packed

    # Numbers instead of features: float64, in which every unit has a number of its own.
    units = torch.cat(pack(torch.arange(sum(tiles) * side * side, dtype=torch.float64).view(-1, side * side, 1)))[:, 0]
    if not torch.equal(units, units.round()):
        shapes = [get_anyres_image_grid_shape(size, pinpoints, pixels) for size in sizes]
        return _scaled_down(tiles, shapes, side, pack, call.pixels)
    return Layout(
        grids=((side, side),) * sum(tiles),
        owners=tuple(image for image, count in enumerate(tiles) for _ in range(count)),
        lengths=tuple(len(image) for image in pack(torch.zeros(sum(tiles), side * side, 1))),
        placed=units.long(),
    )


def _scaled_down(tiles: list[int], shapes: list[tuple[int, int]], side: int, pack: Any, pixels: Tensor) -> Layout:
    """Units are interpolated between the projected patches of an image: one row of units per image."""
    places = torch.cat([_places(count, shape, side) for count, shape in zip(tiles, shapes, strict=True)])
    members, weights, placed, lengths, first = [], [], [], [], 0
    for packed, count, (_, across) in zip(pack(places), tiles, shapes, strict=True):
        unit = packed[:, 0] >= 0
        member, weight = _neighbours(packed[unit], side, across)
        members.append(member.clamp(max=count * side * side - 1))
        weights.append(weight.float())
        numbers = first + unit.long().cumsum(0) - 1
        placed.append(numbers.where(unit, -1))
        lengths.append(len(packed))
        first += len(member)
    return Layout(
        grids=tuple((1, len(member)) for member in members),
        owners=tuple(range(len(tiles))),
        lengths=tuple(lengths),
        members=tuple(members),
        weights=tuple(weights),
        placed=torch.cat(placed),
        pixels=pixels.split(tiles),
        patches=tuple(count * side * side for count in tiles),
        regrouped=True,
        late="pack_image_features",
    )


def _places(count: int, shape: tuple[int, int], side: int) -> Tensor:
    """Where each patch of an image lies ``[tiles, n, 3]``: 0 and its row and column in the base image, 1 and its row and
    column in the stitched tiles."""
    row, column = torch.meshgrid(*[torch.arange(side, dtype=torch.float64)] * 2, indexing="ij")
    tile = torch.arange(count - 1, dtype=torch.float64)[:, None]
    base = torch.stack([torch.zeros_like(row), row, column], dim=-1).flatten(0, 1)[None]
    rows, columns = row.flatten() + side * (tile // shape[1]), column.flatten() + side * (tile % shape[1])
    return torch.cat([base, torch.stack([torch.ones_like(rows), rows, columns], dim=-1)])


def _neighbours(places: Tensor, side: int, across: int) -> tuple[Tensor, Tensor]:
    """The four patches ``[n, 4]`` around each interpolated place, numbered over the image's tiles, and their weights."""
    tiled = places[:, 0].long()
    low = (places[:, 1:] + 1e-9).floor()
    part = (places[:, 1:] - low).clamp(min=0)
    members, weights = [], []
    for down in (0, 1):
        for right in (0, 1):
            row, column = (low[:, 0] + down).long(), (low[:, 1] + right).long()
            tile = tiled * (1 + row // side * across + column // side)
            members.append(tile * side * side + row % side * side + column % side)
            weights.append((part[:, 0] if down else 1 - part[:, 0]) * (part[:, 1] if right else 1 - part[:, 1]))
    return torch.stack(members, dim=-1), torch.stack(weights, dim=-1)
