"""InternVL: InternViT tower, pixel shuffle, token-wise projector."""

from __future__ import annotations

from typing import Any

from torch import nn

from tokcomp.models.adapter import Adapter, Call, Layout, Modality, Tower, register_adapter
from tokcomp.models.blocks import scaled_block
from tokcomp.models.causal import decoder_of
from tokcomp.models.llava import body_of, refuse_cls_features
from tokcomp.models.towers import FOLDS, feature_block, folded

__all__ = ["build"]


@register_adapter("InternVLForConditionalGeneration", "InternVLModel")
def build(model: nn.Module) -> Adapter:
    """Adapter of ``InternVLForConditionalGeneration`` (InternVL 2.5, 3: arXiv 2412.05271, 2504.10479).

    The model knows no images, only tiles: each tile counts as an image.
    """
    body = body_of(model)
    refuse_cls_features(body.config, True)
    return Adapter(
        family="internvl",
        model=model,
        decoder=decoder_of(body.language_model),
        tower=_tower(body),
        multimodal=body,
        modalities=(Modality("image", body.config.image_token_id, "get_image_features"),),
        embed=body.get_input_embeddings(),
    )


def _tower(body: Any) -> Tower:
    tower, config = body.vision_tower, body.config
    blocks, fold = tower.encoder.layer, round(1 / config.downsample_ratio)
    height, width = tower.config.patch_size

    def layout(call: Call) -> Layout:
        rows = call.pixels.shape[0]
        return folded(rows, (call.pixels.shape[-2] // height, call.pixels.shape[-1] // width), fold)

    block, _ = feature_block(config.vision_feature_layer, len(blocks))
    return Tower(
        module=tower,
        blocks=tuple(scaled_block(each) for each in blocks),
        n_prefix=1,
        has_cls=True,
        feature_block=block,
        entry=body.multi_modal_projector,
        exit=body.multi_modal_projector,
        layout=layout,
        config=tower.config,
        sealed=FOLDS.format(f"{fold}x{fold}"),
    )
