"""Queries and keys of a decoder layer without running it: for strategies that look through the next layer's eyes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from tokcomp.models.rotary import rotates

__all__ = ["QueryKey", "query_key_of"]

QueryKey = Callable[[int, Tensor, int, tuple[Tensor, Tensor]], tuple[Tensor, Tensor, float]]
"""``(layer, hidden [b, l, d], rows, (cos, sin)) -> (query [b, h, rows, d_head], key [b, g, l, d_head], scale)``: what the
layer's attention would see of the last ``rows`` queries and of all keys, rotary applied."""


def query_key_of(layers: Sequence[nn.Module]) -> QueryKey | None:
    """The layers' own input norm, projections and rotation, or None where a layer has another layout."""
    if not all(_shows_projections(layer) for layer in layers):
        return None

    def query_key(
        number: int, hidden: Tensor, rows: int, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, float]:
        layer: Any = layers[number]
        attention, normed = layer.self_attn, layer.input_layernorm(hidden)
        query = _heads(attention, attention.q_proj(normed[:, normed.shape[1] - rows :]), "q_norm")
        key = _heads(attention, attention.k_proj(normed), "k_norm")
        cos, sin = rotary
        last = cos[..., cos.shape[-2] - rows :, :], sin[..., sin.shape[-2] - rows :, :]
        # The model's function rotates a query and a key at once; with no heads the other one costs nothing.
        if not rotates(attention):
            return query, key, float(attention.scaling)
        query = _rotate(attention, query, query[:, :0], last)[0]
        return query, _rotate(attention, key[:, :0], key, (cos, sin))[1], float(attention.scaling)

    return query_key


def _shows_projections(layer: Any) -> bool:
    attention = getattr(layer, "self_attn", None)
    parts = ("q_proj", "k_proj", "head_dim", "scaling")
    module = sys.modules[type(attention).__module__]
    rotates = hasattr(module, "apply_rotary_pos_emb") or hasattr(module, "apply_multimodal_rotary_pos_emb")
    return hasattr(layer, "input_layernorm") and all(hasattr(attention, part) for part in parts) and rotates


def _heads(attention: Any, projected: Tensor, norm: str) -> Tensor:
    """``[b, l, h * d_head]`` as ``[b, h, l, d_head]``, through the layer's own head norm where it has one."""
    heads = projected.unflatten(-1, (-1, attention.head_dim))
    if getattr(attention, norm, None) is not None:
        heads = getattr(attention, norm)(heads)
    return heads.transpose(1, 2)


def _rotate(attention: Any, query: Tensor, key: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    module: Any = sys.modules[type(attention).__module__]
    if not hasattr(module, "apply_multimodal_rotary_pos_emb"):
        return tuple(module.apply_rotary_pos_emb(query, key, *rotary))
    # Qwen2-VL before transformers mixed the three planes in the rotary module itself.
    section = (getattr(attention.config, "rope_parameters", None) or attention.rope_scaling)["mrope_section"]
    return tuple(module.apply_multimodal_rotary_pos_emb(query, key, *rotary, section))
