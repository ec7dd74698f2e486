"""Finds the parts of a model that no adapter knows, where they have their usual names."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from tokcomp.errors import DiscoveryWarning, UnsupportedError
from tokcomp.models.adapter import Adapter, Modality
from tokcomp.models.causal import decoder_of
from tokcomp.models.towers import clip_tower

__all__ = ["discover", "looks_multimodal"]

_TOWERS = ("vision_tower", "visual", "vision_model", "vision_encoder")
_PROJECTORS = ("multi_modal_projector", "mm_projector", "projector", "connector")
_DECODERS = ("language_model", "text_model")


def looks_multimodal(model: nn.Module) -> bool:
    """Whether ``model`` has a vision tower under one of the usual names."""
    return _part(_body(model), _TOWERS) is not None


def discover(model: nn.Module) -> Adapter:
    """An adapter from parts with the usual names: a tower of CLIP's layout, a token-wise projector, a decoder with layers.

    Every image is taken for one row of the tower, whose patches become a token each; where that does not hold, the first
    image is refused.

    Raises:
        UnsupportedError: a part is missing.
    """
    body = _body(model)
    parts = {names: _part(body, names) for names in (_TOWERS, _PROJECTORS, _DECODERS)}
    missing = [" or ".join(names) for names, part in parts.items() if part is None]
    if not callable(getattr(body, "get_image_features", None)):
        missing.append("get_image_features()")
    config: Any = body.config
    if getattr(config, "image_token_id", None) is None:
        missing.append("config.image_token_id")
    if missing:
        raise UnsupportedError(
            f"{type(model).__name__} is no known model and its parts cannot be found: {type(body).__name__} has no "
            f"{', no '.join(missing)}. Write an adapter and register it with tokcomp.models.adapter.register_adapter"
        )
    tower, projector, decoder = parts.values()
    assert tower is not None
    assert projector is not None
    adapter = Adapter(
        family=f"{type(model).__name__} (discovered)",
        model=model,
        decoder=decoder_of(decoder),
        tower=clip_tower(tower, projector, getattr(config, "vision_feature_layer", -1)),
        multimodal=body,
        modalities=(Modality("image", config.image_token_id, "get_image_features"),),
        embed=body.get_input_embeddings(),
    )
    warnings.warn(
        f"no adapter knows {type(model).__name__}: its vision tower, projector and decoder were found by their names. Compare "
        "its answers with an empty Pipeline before you rely on it, or register an adapter",
        DiscoveryWarning,
        stacklevel=2,
    )
    return adapter


def _body(model: nn.Module) -> Any:
    inner = getattr(model, "model", None)
    return inner if isinstance(inner, nn.Module) and _part(inner, _TOWERS) is not None else model


def _part(body: Any, names: tuple[str, ...]) -> nn.Module | None:
    found = (getattr(body, name, None) for name in names)
    return next((part for part in found if isinstance(part, nn.Module)), None)
