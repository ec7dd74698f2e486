"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and GLM-4V: packed towers that fold 2 x 2 patches into a token, multimodal rotary positions.

The processor hands patches over group by group, so that the patches of one token stand side by side. The tower holds all
images, and all frames of all videos, one after another in one sequence; attention stays within an image or frame. Qwen2.5-VL
also orders the groups by attention window and puts them back after its merger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokcomp.models.adapter import Adapter, Call, Layout, Modality, Tower, TowerBlock, register_adapter
from tokcomp.models.causal import decoder_of

__all__ = ["build", "packed_tower"]

_TYPES = {"image": 1, "video": 2}
"""What the models call the kinds of tokens; text is 0."""


@register_adapter(
    "Qwen2VLForConditionalGeneration", "Qwen2VLModel", "Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLModel",
    "Qwen3VLForConditionalGeneration", "Qwen3VLModel", "Qwen3VLMoeForConditionalGeneration", "Qwen3VLMoeModel",
    "Glm4vForConditionalGeneration", "Glm4vModel",
)  # fmt: skip
def build(model: nn.Module) -> Adapter:
    """Adapter of Qwen2-VL (arXiv 2409.12191), Qwen2.5-VL (2502.13923), Qwen3-VL (2511.21631), GLM-4.1V (2507.01006)."""
    body: Any = model.model if hasattr(model, "lm_head") else model
    config: Any = body.config
    # GLM-4V has no placeholder of its own for videos: their frames stand at the placeholders of images.
    video_token = config.image_token_id if config.model_type.startswith("glm4v") else config.video_token_id
    return Adapter(
        family=config.model_type,
        model=model,
        decoder=replace(
            decoder_of(body.language_model), deepstack=len(getattr(body.visual, "deepstack_merger_list", ()))
        ),
        tower=packed_tower(body.visual),
        multimodal=body,
        modalities=(
            Modality("image", config.image_token_id, "get_image_features"),
            Modality("video", video_token, "get_video_features"),
        ),
        embed=body.get_input_embeddings(),
        positions=partial(_positions, body),
    )


def _positions(body: Any, given: Mapping[str, Any], masks: Mapping[str, Tensor], valid: Tensor | None) -> Tensor:
    """The model's own numbers for tokens that it is told nothing of but what stands where."""
    types = torch.stack([mask.long() * _TYPES[kind] for kind, mask in masks.items()]).sum(dim=0)
    optional = {name: given[name] for name in ("second_per_grid_ts",) if given.get(name) is not None}
    positions: Tensor = body.get_rope_index(
        types, mm_token_type_ids=types, image_grid_thw=given.get("image_grid_thw"),
        video_grid_thw=given.get("video_grid_thw"), attention_mask=None if valid is None else valid.long(), **optional,
    )[0]  # fmt: skip
    return positions


def packed_tower(visual: Any) -> Tower:
    """The tower of these families: blocks ``norm1, attn, norm2, mlp``, then a merger of patch groups."""
    # Where patches have been folded: the merger's first step that sees one state per token.
    merger = visual.merger
    entry = next(getattr(merger, name) for name in ("mlp", "linear_fc1", "proj") if hasattr(merger, name))
    return Tower(
        module=visual,
        blocks=tuple(packed_block(block) for block in visual.blocks),
        n_prefix=0,
        has_cls=False,
        feature_block=len(visual.blocks) - 1,
        entry=entry,
        exit=merger,
        layout=lambda call: packed_layout(visual, call),
        config=visual.config,
        packed=True,
        segmented=True,
        branches=tuple(getattr(visual, "deepstack_merger_list", ())),
    )


def packed_block(block: Any) -> TowerBlock:
    """Take a block apart between its attention and its MLP."""
    norm1, attention, norm2, mlp = block.norm1, block.attn, block.norm2, block.mlp

    def attend(hidden: Tensor, **kwargs: Any) -> Tensor:
        out: Tensor = attention(norm1(hidden), **kwargs)
        return hidden + out

    def feed(hidden: Tensor) -> Tensor:
        out: Tensor = mlp(norm2(hidden))
        return hidden + out

    return TowerBlock(module=block, attention=attention, attend=attend, feed=feed)


def packed_layout(visual: Any, call: Call) -> Layout:
    """A row is an image or one frame of a video; a unit is a group of patches, in raster order of its row."""
    side: int = visual.spatial_merge_size
    given = call.given.get("video_grid_thw" if call.kind == "video" else "image_grid_thw", call.tower["grid_thw"])
    grids, owners, lengths, members = [], [], [], []
    for owner, (frames, height, width) in enumerate(given.tolist()):
        rows, columns = height // side, width // side
        order = _group_places(visual, rows, columns)
        grids += [(rows, columns)] * frames
        owners += [owner] * frames
        lengths.append(frames * rows * columns)
        members += [order[:, None] * side**2 + torch.arange(side**2)] * frames
    pixels = call.pixels.split([each.numel() for each in members])
    return Layout(
        grids=tuple(grids), owners=tuple(owners), lengths=tuple(lengths), members=tuple(members), pixels=pixels
    )


def _group_places(visual: Any, rows: int, columns: int) -> Tensor:
    """Where each group of a row, in raster order, stands in the tower's sequence ``[rows * columns]``."""
    groups = torch.arange(rows * columns)
    if not hasattr(visual, "window_size"):
        return groups
    # Window by window, each in raster order; windows at the right and lower edges are smaller.
    window = visual.window_size // visual.spatial_merge_size // visual.patch_size
    row, column = groups // columns, groups % columns
    key = ((row // window) * columns + column // window) * rows * columns + groups
    return key.argsort().argsort()
