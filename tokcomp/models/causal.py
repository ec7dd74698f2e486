"""Plain causal language models (Llama, Mistral, Qwen2, Gemma...), and the decoder part of every VLM."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tokcomp.errors import UnsupportedError
from tokcomp.models.adapter import Adapter, Decoder
from tokcomp.models.projections import query_key_of
from tokcomp.models.rotary import pairs_neighbours, rotary_axes, rotary_planes, rotates

__all__ = ["build", "decoder_of", "looks_causal"]

_FULL, _SLIDING = "full_attention", "sliding_attention"


def looks_causal(model: nn.Module) -> bool:
    """Whether ``model`` is a causal language model of the common layout."""
    body = getattr(model, "model", model)
    return hasattr(body, "layers") and hasattr(body, "rotary_emb") and hasattr(body, "embed_tokens")


def decoder_of(body: Any, *, first_position: int = 0, prefix: bool = False) -> Decoder:
    """The decoder of a language-model body with ``layers``, ``rotary_emb`` and ``layers[i].self_attn``.

    Raises:
        UnsupportedError: a part is missing, or layers attend in a way that is not supported.
    """
    _refuse_without_parts(body)
    config, attentions = body.config, tuple(layer.self_attn for layer in body.layers)
    kinds = _kinds(body, prefix=prefix)
    tables = kinds if "layer_type" in inspect.signature(body.rotary_emb.forward).parameters else ()
    window: int | None = getattr(config, "sliding_window", None)

    def rotary(hidden: Tensor, position_ids: Tensor, layer: int = 0) -> tuple[Tensor, Tensor]:
        which = (tables[layer],) if tables else ()
        return _tables(body.rotary_emb, hidden, position_ids, *which)

    def inv_freq(layer: int) -> Tensor | None:
        if not rotates(attentions[layer]):
            return None
        freq: Tensor = getattr(body.rotary_emb, f"{tables[layer]}_inv_freq" if tables else "inv_freq")
        return freq

    def interleaved() -> bool:
        layer = next(number for number in range(len(attentions)) if rotates(attentions[number]))
        freq = inv_freq(layer)
        assert freq is not None
        nowhere = torch.zeros((planes, 1, 1) if planes > 1 else (1, 1), dtype=torch.long, device=freq.device)
        return pairs_neighbours(attentions[layer], freq, rotary(freq.new_zeros(1, 1, 1), nowhere, layer)[0])

    planes = rotary_planes(body.rotary_emb)
    return Decoder(
        module=body,
        layers=tuple(body.layers),
        attentions=attentions,
        rotary=rotary,
        inv_freq=inv_freq,
        config=config,
        windows=tuple(window if kind == _SLIDING else None for kind in kinds) if _SLIDING in kinds else (),
        tables=tables,
        planes=planes,
        axes=cache(lambda: rotary_axes(body.rotary_emb)),
        interleaved=cache(interleaved),
        first_position=first_position,
        masked=prefix,
        query_key=query_key_of(body.layers),
        norm=getattr(body, "norm", None),
        logits=lambda layer: _logits(attentions[layer]),
    )


def _tables(rotary: Any, hidden: Tensor, position_ids: Tensor, *which: str) -> tuple[Tensor, Tensor]:
    """cos and sin on the device of ``hidden``: a layer may lie elsewhere than the frequencies."""
    home = next((each.device for each in rotary.buffers() if each.device.type != "meta"), hidden.device)
    if home == hidden.device:
        cos, sin = rotary(hidden, position_ids, *which)
        return cos, sin
    # Of the states only dtype and device are looked at.
    cos, sin = rotary(hidden[:, :1, :1].to(home), position_ids.to(home), *which)
    return cos.to(hidden.device), sin.to(hidden.device)


def _refuse_without_parts(body: Any) -> None:
    missing = [part for part in ("layers", "rotary_emb") if not hasattr(body, part)]
    if not missing and not all(hasattr(layer, "self_attn") for layer in body.layers):
        missing = ["layers[i].self_attn"]
    if missing:
        raise UnsupportedError(
            f"the language model {type(body).__name__} has no {', '.join(missing)}: write an adapter"
        )


def _kinds(body: Any, *, prefix: bool) -> tuple[str, ...]:
    """How each layer attends: ``full_attention`` or ``sliding_attention``.

    Raises:
        UnsupportedError: another kind, layers that share a cache, or attention to what follows.
    """
    config, depth, who = body.config, len(body.layers), f"the language model {type(body).__name__}"
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = [_FULL if getattr(config, "sliding_window", None) is None else _SLIDING] * depth
    other = sorted(set(kinds[:depth]) - {_FULL, _SLIDING})
    if other:
        raise UnsupportedError(
            f"{who} has {', '.join(other)} layers; tokcomp supports full and sliding-window attention"
        )
    if getattr(config, "num_kv_shared_layers", 0) or "reuse" in (getattr(config, "kv_sharing_modes", None) or ()):
        raise UnsupportedError(f"{who} has layers that share the cache of another layer, which is not supported")
    # Who attends in both directions within a prefix tells so in its adapter's ``blocks``.
    if (getattr(config, "use_bidirectional_attention", False) is True and not prefix) or getattr(
        config, "is_causal", True
    ) is False:
        raise UnsupportedError(f"{who} attends in both directions; tokcomp supports causal language models")
    return tuple(kinds[:depth])


def _logits(attention: Any) -> dict[str, Any]:
    """What a layer's attention does to its logits: Gemma 2 caps them, gpt-oss adds a learned one that belongs to no key."""
    found = {"softcap": getattr(attention, "attn_logit_softcapping", None), "sinks": getattr(attention, "sinks", None)}
    return {name: value for name, value in found.items() if value is not None}


def build(model: nn.Module) -> Adapter:
    """Adapter of a plain causal language model: cache policies act, the other two stages have nothing to act on."""
    return Adapter(family="causal-lm", model=model, decoder=decoder_of(getattr(model, "model", model)))
