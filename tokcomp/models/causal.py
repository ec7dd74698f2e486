"""Plain causal language models (Llama, Mistral, Qwen2...), and the decoder part of every VLM."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tokcomp.errors import UnsupportedError
from tokcomp.models.adapter import Adapter, Decoder
from tokcomp.models.projections import query_key_of
from tokcomp.models.rotary import pairs_neighbours, rotary_axes, rotary_planes

__all__ = ["build", "decoder_of", "looks_causal"]


def looks_causal(model: nn.Module) -> bool:
    """Whether ``model`` is a causal language model of the common layout."""
    body = getattr(model, "model", model)
    return hasattr(body, "layers") and hasattr(body, "rotary_emb") and hasattr(body, "embed_tokens")


def decoder_of(body: Any) -> Decoder:
    """The decoder of a language-model body with ``layers``, ``rotary_emb`` and ``layers[i].self_attn``.

    Raises:
        UnsupportedError: a part is missing, or layers attend through a sliding window.
    """
    missing = [part for part in ("layers", "rotary_emb") if not hasattr(body, part)]
    if not missing and not all(hasattr(layer, "self_attn") for layer in body.layers):
        missing = ["layers[i].self_attn"]
    if missing:
        raise UnsupportedError(
            f"the language model {type(body).__name__} has no {', '.join(missing)}: write an adapter"
        )
    layer_types = set(getattr(body.config, "layer_types", None) or ["full_attention"])
    if layer_types != {"full_attention"}:
        raise UnsupportedError(
            f"the language model {type(body).__name__} has {', '.join(sorted(layer_types))} layers; tokcomp supports "
            "full attention only"
        )

    def rotary(hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        return body.rotary_emb(hidden, position_ids=position_ids)

    def inv_freq() -> Tensor:
        freq: Tensor = body.rotary_emb.inv_freq
        return freq

    layers = body.layers
    attention = layers[0].self_attn
    return Decoder(
        module=body,
        layers=tuple(layers),
        attentions=tuple(layer.self_attn for layer in layers),
        rotary=rotary,
        inv_freq=inv_freq,
        config=body.config,
        planes=rotary_planes(body.rotary_emb),
        axes=lambda: rotary_axes(body.rotary_emb),
        interleaved=lambda: pairs_neighbours(attention, inv_freq()),
        query_key=query_key_of(layers),
        norm=getattr(body, "norm", None),
    )


def build(model: nn.Module) -> Adapter:
    """Adapter of a plain causal language model: cache policies act, the other two stages have nothing to act on."""
    return Adapter(family="causal-lm", model=model, decoder=decoder_of(getattr(model, "model", model)))
