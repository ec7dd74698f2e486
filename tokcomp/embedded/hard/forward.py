"""The model's layers as plain functions of their weights: the same arithmetic as in transformers, which a test compares.

Written out so that one compiled function serves all layers, and so that nothing runs that training does not need.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from tokcomp.embedded.training.vision import encoder_of


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def language_layer(
    x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, eps: float, weights: tuple[Tensor, ...]
) -> Tensor:
    """One Llama layer on (b, t, d); ``cos`` and ``sin`` are (b, 1, t, d_head)."""
    norm1, query, key, value, out, norm2, gate, up, down = weights
    width = cos.shape[-1]
    normed = F.rms_norm(x, x.shape[-1:], norm1, eps)
    q, k, v = (F.linear(normed, w).unflatten(-1, (-1, width)).transpose(1, 2) for w in (query, key, value))
    q, k = _turned(q, cos, sin), _turned(k, cos, sin)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
    x = x + F.linear(mixed, out)
    normed = F.rms_norm(x, x.shape[-1:], norm2, eps)
    return x + F.linear(F.silu(F.linear(normed, gate)) * F.linear(normed, up), down)


def attention_rows(
    x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, eps: float, weights: tuple[Tensor, ...], rows: Tensor
) -> Tensor:
    """What the positions ``rows`` (b, q) of a Llama layer's input (b, t, d) attend to, mean over heads (b, q, t)."""
    norm, query, key = weights[:3]
    width, place = cos.shape[-1], rows[..., None]
    normed = F.rms_norm(x, x.shape[-1:], norm, eps)
    asking = normed.gather(1, place.expand(-1, -1, x.shape[-1]))
    turns = (angle[:, 0].gather(1, place.expand(-1, -1, width))[:, None] for angle in (cos, sin))
    q = _turned(F.linear(asking, query).unflatten(-1, (-1, width)).transpose(1, 2), *turns)
    k = _turned(F.linear(normed, key).unflatten(-1, (-1, width)).transpose(1, 2), cos, sin)
    seen = mask[:, 0].gather(1, place.expand(-1, -1, mask.shape[-1]))
    return ((q @ k.transpose(2, 3)).float() * width**-0.5 + seen[:, None].float()).softmax(-1).mean(1)


def tower_layer(x: Tensor, heads: int, weights: tuple[Tensor, ...]) -> Tensor:
    """One CLIP layer on (b, n, d)."""
    norm1, bias1, wq, bq, wk, bk, wv, bv, wo, bo, norm2, bias2, w1, b1, w2, b2 = weights
    normed = F.layer_norm(x, x.shape[-1:], norm1, bias1, 1e-5)
    q, k, v = (
        F.linear(normed, w, b).unflatten(-1, (heads, -1)).transpose(1, 2) for w, b in ((wq, bq), (wk, bk), (wv, bv))
    )
    x = x + F.linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), wo, bo)
    inner = F.linear(F.layer_norm(x, x.shape[-1:], norm2, bias2, 1e-5), w1, b1)
    return x + F.linear(inner * torch.sigmoid(1.702 * inner), w2, b2)


@cache
def _compiled_layers() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    return torch.compile(language_layer, dynamic=False), torch.compile(tower_layer, dynamic=False)


class Forward:
    """The passes that training makes over one model.

    Attributes:
        model: whose weights are used.
        dtype: of the matrix products; float32 leaves everything exact.
    """

    def __init__(self, model: LlavaForConditionalGeneration, dtype: torch.dtype, *, compiled: bool = False) -> None:
        self.model, self.dtype = model, dtype
        self._language, self._tower = language_layer, tower_layer
        if compiled:
            self._language, self._tower = _compiled_layers()

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _layers(self) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
        # Compiled for one shape and for learning; examinations are few and need no compilation of their own.
        return (self._language, self._tower) if torch.is_grad_enabled() else (language_layer, tower_layer)

    def features(self, pixels: Tensor, *, last: bool = False) -> tuple[Tensor, Tensor | None]:
        """Class token and patches (b, 145, 128) where LLaVA reads them and, if ``last``, behind the last layer."""
        encoder = encoder_of(self.model.model.vision_tower)
        heads = encoder.encoder.layers[0].self_attn.num_heads
        with self._autocast(pixels.device):
            hidden = encoder.pre_layrnorm(encoder.embeddings(pixels))
            tower = self._layers()[1]
            for layer in encoder.encoder.layers[:-1]:
                hidden = tower(hidden, heads, tower_weights(layer))
            final = tower(hidden, heads, tower_weights(encoder.encoder.layers[-1])) if last else None
        return hidden, final

    def project(self, patches: Tensor) -> Tensor:
        """Visual tokens (b, 144, 192) float32."""
        with self._autocast(patches.device):
            projected: Tensor = self.model.model.multi_modal_projector(patches)
        return projected.float()

    def language(
        self, embeddings: Tensor, mask: Tensor, positions: Tensor, rows: Tensor | None = None, first: int = 0
    ) -> tuple[Tensor, list[Tensor]]:
        """Normed final hidden states (b, t, d) of embeddings under an additive mask (b, 1, t, t).

        With ``rows`` (b, q), also what these positions attend to (b, q, t) in every layer from ``first`` on.
        """
        language = self.model.model.language_model
        cos, sin = language.rotary_emb(embeddings, positions)
        cos, sin = cos[:, None].to(self.dtype), sin[:, None].to(self.dtype)
        hidden, eps = embeddings, language.config.rms_norm_eps
        with self._autocast(embeddings.device):
            run, looks = self._layers()[0], []
            for depth, layer in enumerate(language.layers):
                if rows is not None and depth >= first:
                    looks.append(attention_rows(hidden, cos, sin, mask, eps, language_weights(layer), rows))
                hidden = run(hidden, cos, sin, mask, eps, language_weights(layer))
        return F.rms_norm(hidden, hidden.shape[-1:], language.norm.weight, eps), looks


def language_weights(layer: LlamaDecoderLayer) -> tuple[Tensor, ...]:
    """The weights of a Llama layer in the order of `language_layer`."""
    a, m = layer.self_attn, layer.mlp
    linears = (a.q_proj, a.k_proj, a.v_proj, a.o_proj), (m.gate_proj, m.up_proj, m.down_proj)
    attention, mlp = (tuple(linear.weight for linear in group) for group in linears)
    return (layer.input_layernorm.weight, *attention, layer.post_attention_layernorm.weight, *mlp)


def tower_weights(layer: CLIPEncoderLayer) -> tuple[Tensor, ...]:
    """The weights of a CLIP layer in the order of `tower_layer`."""
    a, m = layer.self_attn, layer.mlp
    modules = (layer.layer_norm1, a.q_proj, a.k_proj, a.v_proj, a.out_proj, layer.layer_norm2, m.fc1, m.fc2)
    return tuple(tensor for module in modules for tensor in (module.weight, module.bias))
