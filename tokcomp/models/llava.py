"""LLaVA and its like: CLIP (or SigLIP) tower, token-wise projector, Llama-like decoder."""

from __future__ import annotations

from typing import Any

from torch import nn

from tokcomp.errors import UnsupportedError
from tokcomp.models.adapter import Adapter, Call, Layout, Modality, Tower, register_adapter
from tokcomp.models.blocks import pre_norm_block
from tokcomp.models.causal import decoder_of

__all__ = ["build", "clip_tower"]


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
    body: Any = model.model if hasattr(model, "lm_head") else model
    config: Any = body.config
    tower = clip_tower(body.vision_tower, body.multi_modal_projector, config.vision_feature_layer)
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


def clip_tower(tower: nn.Module, projector: nn.Module, feature_layer: int | list[int]) -> Tower:
    """The tower of a CLIP-like vision model; ``feature_layer`` indexes its hidden states, as in transformers."""
    core: Any = getattr(tower, "vision_model", tower)
    layers = getattr(getattr(core, "encoder", None), "layers", None)
    if layers is None or not all(
        hasattr(layers[0], part) for part in ("layer_norm1", "self_attn", "layer_norm2", "mlp")
    ):
        raise UnsupportedError(f"the vision tower {type(tower).__name__} has no encoder.layers of CLIP's layout")
    depth = len(layers)
    has_cls = hasattr(core.embeddings, "class_embedding")
    patch: int = core.config.patch_size
    # hidden_states[0] is the embedding output, hidden_states[k] the output of block k - 1.
    block = None if isinstance(feature_layer, list | tuple) else feature_layer % (depth + 1) - 1

    def layout(call: Call) -> Layout:
        rows, _, height, width = call.pixels.shape
        return Layout.one_row_each(rows, (height // patch, width // patch))

    return Tower(
        module=tower,
        blocks=tuple(pre_norm_block(layer) for layer in layers),
        n_prefix=1 if has_cls else 0,
        has_cls=has_cls,
        feature_block=block,
        entry=projector,
        exit=projector,
        layout=layout,
        config=core.config,
    )
