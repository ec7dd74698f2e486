"""Sizes of further families: one reader each, see :mod:`tokcomp.measure.shape`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tokcomp.measure.shape import ModelShape, TowerShape, combined, family, vit_tower

__all__: list[str] = []


@family("llava_next_video", "vipllava")
def _llava_kin(config: Any) -> ModelShape:
    tower = vit_tower(config.vision_config)
    chosen: Any = getattr(config, "vision_feature_layers", None) or getattr(config, "vision_feature_layer", -2)
    layers = [chosen] if isinstance(chosen, int) else list(chosen)
    width = config.text_config.hidden_size
    block = (layers[0] if layers[0] >= 0 else tower.blocks + 1 + layers[0]) - 1 if len(layers) == 1 else None
    return combined(
        config, tower=tower, projector=((tower.hidden * len(layers), width), (width, width)), feature_block=block
    )


@family("gemma3")
def _gemma3(config: Any) -> ModelShape:
    """Patches are averaged to ``mm_tokens_per_image`` tokens, then projected."""
    tower = vit_tower(config.vision_config)
    return _last_block(config, tower, ((tower.hidden, config.text_config.hidden_size),),
                       merge=_patches(tower) // config.mm_tokens_per_image)  # fmt: skip


@family("paligemma")
def _paligemma(config: Any) -> ModelShape:
    tower = vit_tower(config.vision_config)
    return _last_block(config, tower, ((tower.hidden, config.text_config.hidden_size),))


@family("idefics3", "smolvlm")
def _idefics3(config: Any) -> ModelShape:
    """Pixel shuffle folds ``scale_factor`` squared patches into one token; one linear layer."""
    tower, merge = vit_tower(config.vision_config), config.scale_factor**2
    return _last_block(config, tower, ((tower.hidden * merge, config.text_config.hidden_size),), merge=merge)


@family("internvl")
def _internvl(config: Any) -> ModelShape:
    tower, merge, width = (
        vit_tower(config.vision_config),
        int(1 / config.downsample_ratio) ** 2,
        config.text_config.hidden_size,
    )
    return _last_block(config, tower, ((tower.hidden * merge, width), (width, width)), merge=merge)


@family("aya_vision")
def _aya_vision(config: Any) -> ModelShape:
    """Pixel shuffle, then a gated MLP whose first layer holds the gate."""
    tower, merge, width = vit_tower(config.vision_config), config.downsample_factor**2, config.text_config.hidden_size
    middle = getattr(config, "alignment_intermediate_size", None) or width
    return _last_block(config, tower, ((tower.hidden * merge, middle), (middle // 2, width)), merge=merge)


@family("mistral3")
def _mistral3(config: Any) -> ModelShape:
    """The Pixtral tower reads images of any size; 2 x 2 patches are fused before the MLP."""
    vision, merge, width = config.vision_config, config.spatial_merge_size**2, config.text_config.hidden_size
    tower = TowerShape(
        hidden=vision.hidden_size,
        intermediate=vision.intermediate_size,
        heads=vision.num_attention_heads,
        head_dim=vision.head_dim,
        blocks=vision.num_hidden_layers,
        patch_inputs=vision.num_channels * vision.patch_size**2,
        gated=True,
    )
    fused = (tower.hidden * merge, tower.hidden)
    return _last_block(config, tower, (fused, (tower.hidden, width), (width, width)), merge=merge)


@family("qwen3_vl")
def _qwen3_vl(config: Any) -> ModelShape:
    """One merger after the tower, and one for each of the deep features."""
    vision, merge = config.vision_config, config.vision_config.spatial_merge_size**2
    fused = vision.hidden_size * merge
    merger = ((fused, fused), (fused, config.text_config.hidden_size))
    tower = TowerShape(
        hidden=vision.hidden_size,
        intermediate=vision.intermediate_size,
        heads=vision.num_heads,
        head_dim=vision.hidden_size // vision.num_heads,
        blocks=vision.depth,
        patch_inputs=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
    )
    return _last_block(config, tower, merger * (1 + len(vision.deepstack_visual_indexes)), merge=merge)


@family("glm4v")
def _glm4v(config: Any) -> ModelShape:
    """The tower's MLPs are gated and as wide as its output; a strided convolution fuses 2 x 2 patches, a gated MLP follows."""
    vision, merge = config.vision_config, config.vision_config.spatial_merge_size**2
    out, middle = vision.out_hidden_size, vision.intermediate_size
    tower = TowerShape(
        hidden=vision.hidden_size,
        intermediate=out,
        heads=vision.num_heads,
        head_dim=vision.hidden_size // vision.num_heads,
        blocks=vision.depth,
        patch_inputs=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        gated=True,
    )
    merger = ((vision.hidden_size * merge, out), (out, out), (out, middle), (out, middle), (middle, out))
    return _last_block(config, tower, merger, merge=merge)


def _patches(tower: TowerShape) -> int:
    assert tower.grid is not None
    return tower.grid[0] * tower.grid[1]


def _last_block(
    config: Any, tower: TowerShape, projector: tuple[tuple[int, int], ...], *, merge: int = 1
) -> ModelShape:
    """Image features are the output of the tower's last block."""
    shape = combined(config, tower=tower, projector=projector, merge=merge, feature_block=tower.blocks - 1)
    return replace(shape, feature_prefix=False)
