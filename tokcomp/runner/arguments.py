"""The arguments of the model's own calls by name, whichever name the installed transformers gives the cache."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["by_name", "cache_in", "cache_name", "kinds_in", "outputs_in", "tokens_in"]


def cache_name(module: nn.Module) -> str:
    """What ``module.forward`` calls the cache: ``cache`` from transformers 5.24 on, ``past_key_values`` before that."""
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"


def cache_in(values: Mapping[str, Any]) -> Any:
    """The cache among the keyword arguments of a call, or in a model's output, or None."""
    found = values.get("cache")
    return values.get("past_key_values") if found is None else found


def by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``module.forward`` by name."""
    if not args:
        return dict(kwargs)
    return {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}


def outputs_in(given: Mapping[str, Any]) -> dict[str, Any]:
    """Per kind of vision input the output of its encoder that a model is called with."""
    outputs = given.get("mm_encoder_outputs") or {}
    return {kind: output for kind, output in outputs.items() if output is not None}


def kinds_in(given: Mapping[str, Any]) -> set[str]:
    """The kinds of vision input that a model is called with, as pixels or encoded."""
    pixels = [name for name, value in given.items() if name.startswith("pixel_values") and value is not None]
    return outputs_in(given).keys() | {"video" if name.endswith("videos") else "image" for name in pixels}


def tokens_in(kwargs: Mapping[str, Any]) -> Tensor:
    """The tokens of a call of the decoder: embeddings ``[b, l, d]`` where it has them, else ids ``[b, l]``."""
    tokens: Tensor = kwargs["inputs_embeds"] if kwargs.get("inputs_embeds") is not None else kwargs["input_ids"]
    return tokens
