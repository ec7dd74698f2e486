"""LLaVA and its like: CLIP (or SigLIP, Pixtral) tower, token-wise projector, Llama-like decoder."""

from __future__ import annotations

from typing import Any

from torch import nn

from tokcomp.errors import UnsupportedError
from tokcomp.models.adapter import Adapter, Modality, register_adapter
from tokcomp.models.causal import decoder_of
from tokcomp.models.pixtral import is_pixtral, pixtral_tower
from tokcomp.models.towers import clip_tower

__all__ = ["body_of", "build", "build_vip", "refuse_cls_features"]


def body_of(model: Any) -> Any:
    """The multimodal model inside a model with a head."""
    return model.model if hasattr(model, "lm_head") else model


def refuse_cls_features(config: Any, has_cls: bool) -> None:
    """Raise where the CLS token is among the image tokens, or where a patch is cut off instead of it."""
    strategy = config.vision_feature_select_strategy
    if has_cls and strategy != "default":
        raise UnsupportedError(
            f"vision_feature_select_strategy='{strategy}' puts the CLS token among the image tokens; tokcomp supports 'default'"
        )
    if not has_cls and strategy == "default":
        raise UnsupportedError(
            "vision_feature_select_strategy='default' cuts the first token off, and this vision tower has no CLS token there: "
            "set it to 'full'"
        )


@register_adapter("LlavaForConditionalGeneration", "LlavaModel")
def build(model: nn.Module) -> Adapter:
    """Adapter of ``LlavaForConditionalGeneration`` (arXiv 2304.08485, 2310.03744).

    Raises:
        UnsupportedError: a vision tower of another layout, or image features that include the CLS token.
    """
    body = body_of(model)
    config, projector = body.config, body.multi_modal_projector
    if is_pixtral(body.vision_tower):
        tower = pixtral_tower(body.vision_tower, projector, config.vision_feature_layer)
    else:
        tower = clip_tower(body.vision_tower, projector, config.vision_feature_layer)
    refuse_cls_features(config, tower.has_cls)
    return Adapter(
        family="llava",
        model=model,
        decoder=decoder_of(body.language_model),
        tower=tower,
        multimodal=body,
        modalities=(Modality("image", config.image_token_id, "get_image_features"),),
        embed=body.get_input_embeddings(),
    )


@register_adapter("VipLlavaForConditionalGeneration", "VipLlavaModel")
def build_vip(model: nn.Module) -> Adapter:
    """Adapter of ``VipLlavaForConditionalGeneration`` (arXiv 2312.00784), which mixes the features of several layers."""
    body = body_of(model)
    config = body.config
    # The field's name before transformers 5.24, and after it.
    layers = config.vision_feature_layers if hasattr(config, "vision_feature_layers") else config.vision_feature_layer
    return Adapter(
        family="vipllava",
        model=model,
        decoder=decoder_of(body.language_model),
        tower=clip_tower(body.vision_tower, body.multi_modal_projector, layers),
        multimodal=body,
        modalities=(Modality("image", body.config.image_token_id, "get_image_features"),),
        embed=body.get_input_embeddings(),
    )
