"""Vision-transformer blocks, taken apart: ``layer_norm1, self_attn, layer_norm2, mlp`` (CLIP, SigLIP) and InternViT."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokcomp.models.adapter import TowerBlock

__all__ = ["pre_norm_block", "scaled_block"]


def pre_norm_block(block: Any) -> TowerBlock:
    """Take a pre-norm block apart between its attention and its MLP."""
    norm1, attention, norm2, mlp = block.layer_norm1, block.self_attn, block.layer_norm2, block.mlp

    def attend(hidden: Tensor, **kwargs: Any) -> Tensor:
        return hidden + attention(hidden_states=norm1(hidden), **kwargs)[0]

    def feed(hidden: Tensor) -> Tensor:
        return hidden + mlp(norm2(hidden))

    return TowerBlock(module=block, attention=attention, attend=attend, feed=feed)


def scaled_block(block: Any) -> TowerBlock:
    """Take a block apart whose halves are scaled before they are added (InternViT)."""

    def attend(hidden: Tensor, **kwargs: Any) -> Tensor:
        out: Tensor = block.attention(block.layernorm_before(hidden), **kwargs)[0]
        return hidden + block.lambda_1 * out

    def feed(hidden: Tensor) -> Tensor:
        return hidden + block.lambda_2 * block.mlp(block.layernorm_after(hidden))

    return TowerBlock(module=block, attention=block.attention, attend=attend, feed=feed)
