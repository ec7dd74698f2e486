"""Vision towers that families share: CLIP's and SigLIP's layout, InternViT, Pixtral."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokcomp.errors import UnsupportedError
from tokcomp.models.adapter import Call, Layout, Tower
from tokcomp.models.blocks import pre_norm_block

__all__ = ["FOLDS", "clip_tower", "feature_block", "folded", "square_groups"]


def clip_tower(
    tower: nn.Module, entry: nn.Module, feature_layer: Any, *, exit: nn.Module | None = None,
    layout: Callable[[Call], Layout] | None = None, fold: int = 1, late: tuple[str, ...] = (),
) -> Tower:  # fmt: skip
    """The tower of a CLIP-like vision model.

    Args:
        tower: the vision model. ``entry`` and ``exit`` (None: the same module): see :class:`Tower`.
        feature_layer: index of its hidden states, as in transformers, or several of them.
        layout: None: every image is one row of the tower, folded ``fold`` x ``fold`` patches into a unit.
        late: see :class:`Tower`.
    """
    core: Any = getattr(tower, "vision_model", tower)
    layers = getattr(getattr(core, "encoder", None), "layers", None)
    if layers is None or not all(
        hasattr(layers[0], part) for part in ("layer_norm1", "self_attn", "layer_norm2", "mlp")
    ):
        raise UnsupportedError(f"the vision tower {type(tower).__name__} has no encoder.layers of CLIP's layout")
    has_cls = hasattr(core.embeddings, "class_embedding")
    patch: int = core.config.patch_size
    block, mixed = feature_block(feature_layer, len(layers))

    def one_each(call: Call) -> Layout:
        rows, _, height, width = call.pixels.shape
        return folded(rows, (height // patch, width // patch), fold)

    return Tower(
        module=tower,
        blocks=tuple(pre_norm_block(layer) for layer in layers),
        n_prefix=1 if has_cls else 0,
        has_cls=has_cls,
        feature_block=block,
        entry=entry,
        exit=entry if exit is None else exit,
        layout=layout or one_each,
        config=core.config,
        late=late,
        sealed=mixed or ("" if fold == 1 else FOLDS.format(f"{fold}x{fold}")),
    )


FOLDS = "{} patches become one token behind the tower, and a token cannot lose some of its patches"
"""Reason of ``Tower.sealed`` where patches are folded."""


def feature_block(layer: Any, depth: int) -> tuple[int, str]:
    """The block whose output are the features, by the index of its hidden states, and why the tower is sealed; of several
    layers the deepest."""
    # hidden_states[0] is the embedding output, hidden_states[k] the output of block k - 1.
    chosen = [index % (depth + 1) - 1 for index in (layer if isinstance(layer, list | tuple) else [layer])]
    if max(chosen) < 0:
        raise UnsupportedError(
            f"vision_feature_layer={layer} takes the embeddings for features: no block has run there"
        )
    mixed = f"its features are those of {len(chosen)} tower layers side by side, which must all have the same tokens"
    return max(chosen), mixed if len(chosen) > 1 else ""


def folded(rows: int, patches: tuple[int, int], fold: int) -> Layout:
    """The layout of ``rows`` images of one size whose ``fold`` x ``fold`` patches become a unit each, in raster order."""
    if fold == 1:
        return Layout.one_row_each(rows, patches)
    grid = patches[0] // fold, patches[1] // fold
    return Layout.one_row_each(rows, grid, square_groups(patches, fold), patches[0] * patches[1])


def square_groups(patches: tuple[int, int], fold: int) -> Tensor:
    """The patches ``[n, fold * fold]`` of each square of a grid, squares and patches in raster order."""
    index = torch.arange(patches[0] * patches[1]).view(1, 1, *patches).float()
    return nn.functional.unfold(index, kernel_size=fold, stride=fold)[0].t().long()
