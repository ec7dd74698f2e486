"""The Pixtral tower (arXiv 2410.07073): images of any size, one after another in one sequence; and Mistral3, which merges
squares of its patches before the projector."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokcomp.models.adapter import Adapter, Call, Layout, Modality, Tower, TowerBlock, register_adapter
from tokcomp.models.causal import decoder_of
from tokcomp.models.towers import FOLDS, feature_block, square_groups

__all__ = ["build", "is_pixtral", "pixtral_tower"]


def is_pixtral(tower: Any) -> bool:
    """Whether a vision tower is one of Pixtral's layout."""
    return hasattr(tower, "patch_positional_embedding") and hasattr(tower, "transformer")


def pixtral_tower(
    tower: Any, entry: nn.Module, feature_layer: Any, *, exit: nn.Module | None = None, fold: int = 1
) -> Tower:
    """The tower; ``fold`` x ``fold`` patches become one unit. See :func:`~tokcomp.models.towers.clip_tower`."""
    layers = tower.transformer.layers
    block, mixed = feature_block(feature_layer, len(layers))
    side: int = tower.config.patch_size

    def layout(call: Call) -> Layout:
        sizes = _sizes(call)
        patches = [(height // side, width // side) for height, width in sizes]
        grids = tuple((rows // fold, columns // fold) for rows, columns in patches)
        members = None if fold == 1 else tuple(square_groups(grid, fold) for grid in patches)
        pixels = tuple(image[:, :height, :width] for image, (height, width) in zip(call.pixels, sizes, strict=True))
        lengths = tuple(rows * columns for rows, columns in grids)
        return Layout(
            grids,
            tuple(range(len(grids))),
            lengths,
            members=members,
            pixels=pixels,
            patches=tuple(rows * columns for rows, columns in patches),
        )

    packed = "images stand one after another in one sequence, whose masks and rotary tables are made for all of their patches"
    return Tower(
        module=tower,
        blocks=tuple(_block(layer) for layer in layers),
        n_prefix=0,
        has_cls=False,
        feature_block=block,
        entry=entry,
        exit=entry if exit is None else exit,
        layout=layout,
        config=tower.config,
        packed=True,
        sealed=mixed or (packed if fold == 1 else FOLDS.format(f"{fold}x{fold}")),
    )


def _sizes(call: Call) -> list[tuple[int, int]]:
    given = call.tower.get("image_sizes")
    if given is None:
        return [(call.pixels.shape[-2], call.pixels.shape[-1])] * call.pixels.shape[0]
    sizes = given.tolist() if isinstance(given, Tensor) else given
    return [(int(height), int(width)) for height, width in sizes]


def _block(layer: Any) -> TowerBlock:
    def attend(hidden: Tensor, **kwargs: Any) -> Tensor:
        return hidden + layer.attention(hidden_states=layer.attention_norm(hidden), **kwargs)[0]

    def feed(hidden: Tensor) -> Tensor:
        return hidden + layer.feed_forward(layer.ffn_norm(hidden))

    return TowerBlock(module=layer, attention=layer.attention, attend=attend, feed=feed)


@register_adapter("Mistral3ForConditionalGeneration", "Mistral3Model")
def build(model: nn.Module) -> Adapter:
    """Adapter of ``Mistral3ForConditionalGeneration`` (Mistral Small 3.1)."""
    top: Any = model
    body = top.model if hasattr(top, "lm_head") else top
    projector = body.multi_modal_projector
    return Adapter(
        family="mistral3",
        model=model,
        decoder=decoder_of(body.language_model),
        tower=pixtral_tower(body.vision_tower, projector.patch_merger.merging_layer, body.config.vision_feature_layer,
                            exit=projector, fold=body.config.spatial_merge_size),
        multimodal=body,
        modalities=(Modality("image", body.config.image_token_id, "get_image_features"),),
        embed=body.get_input_embeddings(),
    )  # fmt: skip
