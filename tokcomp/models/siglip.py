"""Families on a SigLIP tower that fold squares of patches into one token: Idefics3, SmolVLM, Aya Vision, Gemma 3; and
PaliGemma, which does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tokcomp.models.adapter import Adapter, Modality, Tower, register_adapter
from tokcomp.models.causal import decoder_of
from tokcomp.models.llava import body_of, refuse_cls_features
from tokcomp.models.towers import clip_tower

__all__ = ["build_aya", "build_gemma3", "build_idefics3", "build_paligemma"]


@register_adapter(
    "Idefics3ForConditionalGeneration", "Idefics3Model", "SmolVLMForConditionalGeneration", "SmolVLMModel"
)
def build_idefics3(model: nn.Module) -> Adapter:
    """Adapter of Idefics3 (arXiv 2408.12637) and SmolVLM (arXiv 2504.05299).

    The model knows no images, only tiles: each tile counts as an image.
    """
    body = body_of(model)
    connector = body.connector
    tower = clip_tower(body.vision_model, connector.modality_projection, -1, fold=connector.scale_factor)
    family = "smolvlm" if "smol" in type(body).__name__.lower() else "idefics3"
    return _adapter(model, family, body, body.text_model, tower)


@register_adapter("AyaVisionForConditionalGeneration", "AyaVisionModel")
def build_aya(model: nn.Module) -> Adapter:
    """Adapter of ``AyaVisionForConditionalGeneration`` (arXiv 2505.08751); each tile counts as an image."""
    body = body_of(model)
    config, projector = body.config, body.multi_modal_projector
    tower = clip_tower(body.vision_tower, projector.layernorm, config.vision_feature_layer, exit=projector,
                       fold=config.downsample_factor)  # fmt: skip
    refuse_cls_features(config, tower.has_cls)
    return _adapter(model, "aya_vision", body, body.language_model, tower)


@register_adapter("Gemma3ForConditionalGeneration", "Gemma3Model")
def build_gemma3(model: nn.Module) -> Adapter:
    """Adapter of ``Gemma3ForConditionalGeneration`` (arXiv 2503.19786), which averages squares of patches."""
    body = body_of(model)
    projector = body.multi_modal_projector
    tower = clip_tower(body.vision_tower, projector.mm_soft_emb_norm, -1, exit=projector, fold=projector.kernel_size)
    return replace(_adapter(model, "gemma3", body, body.language_model, tower), blocks=_images)


@register_adapter("PaliGemmaForConditionalGeneration", "PaliGemmaModel")
def build_paligemma(model: nn.Module) -> Adapter:
    """Adapter of ``PaliGemmaForConditionalGeneration`` (arXiv 2407.07726, 2412.03555)."""
    body = body_of(model)
    tower = clip_tower(body.vision_tower, body.multi_modal_projector, -1)
    adapter = _adapter(model, "paligemma", body, body.language_model, tower, first_position=1, prefix=True)
    return replace(adapter, blocks=_prefix, blocks_pass_window=True)


def _images(given: Mapping[str, Any]) -> Tensor | None:
    """Each image's tokens see each other in both directions."""
    types = given.get("token_type_ids")
    if types is None:
        return None
    image = types == 1
    first = image & ~nn.functional.pad(image, (1, 0))[:, :-1]
    return (first.long().cumsum(dim=1) - 1).where(image, -1)


def _prefix(given: Mapping[str, Any]) -> Tensor | None:
    """The prompt, image and text, sees itself in both directions; what is to be answered does not."""
    types = given.get("token_type_ids")
    return None if types is None else torch.zeros_like(types).where(types == 0, -1)


def _adapter(model: nn.Module, family: str, body: Any, decoder: Any, tower: Tower, **of_decoder: Any) -> Adapter:
    return Adapter(
        family=family,
        model=model,
        decoder=decoder_of(decoder, **of_decoder),
        tower=tower,
        multimodal=body,
        modalities=(Modality("image", body.config.image_token_id, "get_image_features"),),
        embed=body.get_input_embeddings(),
    )
