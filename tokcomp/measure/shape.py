"""The sizes of a model that its arithmetic depends on, read from a transformers configuration.

A family is one small reader function: it looks at a configuration and returns a :class:`ModelShape`. The configuration
is used by its attributes only, so that a model needs neither weights nor, for the shipped shapes, transformers itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokcomp.errors import ConfigurationError, UnsupportedError, suggest

__all__ = ["ModelShape", "TowerShape", "combined", "family", "named_config", "named_shape", "shape_names", "vit_tower"]

_SHAPES = Path(__file__).parent / "shapes"


@dataclass(frozen=True, kw_only=True)
class TowerShape:
    """A vision transformer.

    Attributes:
        hidden, intermediate: width of the tokens and of the MLP.
        heads, head_dim: attention heads and the width of one.
        blocks: number of transformer blocks.
        patch_inputs: numbers of one patch that the patch embedding multiplies (channels x pixels x frames).
        prefix: tokens (CLS) that stand before the patches.
        grid: rows and columns of the patches; None where they depend on the image.
        gated: the MLP has a gate (three matrices) instead of two matrices.
        pooling_head: an attention pooling with one query and an MLP runs on the last block's output (SigLIP).
        window: tokens of one attention window; None where all tokens attend to all.
        full_blocks: with windows, the blocks that attend to all tokens all the same.
    """

    hidden: int
    intermediate: int
    heads: int
    head_dim: int
    blocks: int
    patch_inputs: int
    prefix: int = 0
    grid: tuple[int, int] | None = None
    gated: bool = False
    pooling_head: bool = False
    window: int | None = None
    full_blocks: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A vision-language model (or, with ``tower=None``, a plain language model).

    Attributes:
        family: the configuration's ``model_type``.
        hidden, intermediate, layers, vocab: the language model's width, MLP width, layers and vocabulary.
        heads, kv_heads, head_dim: query heads, key/value heads and the width of one.
        gated: the MLP has three matrices (gate, up, down) instead of two.
        tied: the output head shares the input embedding's weights (changes no FLOPs).
        tower: the vision tower.
        projector: input and output width of each linear layer between tower and language model.
        merge: patches that the projector fuses into one token (Qwen-VL: 4).
        feature_block: tower block whose output the projector gets, from 0 (-1: the embeddings); None where it gets the
            outputs of several.
        feature_prefix: the prefix tokens go through the projector too.
        windows: per layer of the language model how many tokens back it sees (its own counted), None for all; empty: no layer
            has a window.
    """

    family: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    gated: bool = True
    tied: bool = False
    tower: TowerShape | None = None
    projector: tuple[tuple[int, int], ...] = ()
    merge: int = 1
    feature_block: int | None = None
    feature_prefix: bool = False
    windows: tuple[int | None, ...] = ()

    def reach(self, layer: int, tokens: float) -> float:
        """Of ``tokens`` that a layer could see, those within its window."""
        window = self.windows[layer] if self.windows else None
        return tokens if window is None else min(tokens, window)

    @classmethod
    def from_config(cls, config: Any) -> ModelShape:
        """The shape of a transformers configuration (``model.config``).

        Raises:
            UnsupportedError: the configuration's ``model_type``, its tower or its language model is of a layout that no
                reader knows; counting it by a wrong formula would be worse.
        """
        import tokcomp.measure.families  # noqa: F401  (importing registers)

        kind = getattr(config, "model_type", None)
        reader = _READERS.get(str(kind))
        if reader is None:
            raise UnsupportedError(
                f"the FLOPs of a '{kind}' model cannot be counted{suggest(str(kind), tuple(_READERS))} known: "
                f"{', '.join(sorted(_READERS))}. Add a reader with tokcomp.measure.shape.family"
            )
        return reader(config)


Reader = Callable[[Any], ModelShape]
_READERS: dict[str, Reader] = {}


def family(*model_types: str) -> Callable[[Reader], Reader]:
    """Decorator: the function reads the shape of configurations with one of these ``model_type``s."""

    def add(reader: Reader) -> Reader:
        _READERS.update(dict.fromkeys(model_types, reader))
        return reader

    return add


def shape_names() -> tuple[str, ...]:
    """Names of the shipped shapes (published models, sizes only)."""
    return tuple(sorted(path.stem for path in _SHAPES.glob("*.json")))


def named_config(name: str) -> dict[str, Any]:
    """The sizes of a published model as its ``config.json`` states them, and under ``source`` whose they are.

    Raises:
        ConfigurationError: no shape of that name is shipped.
    """
    if name not in shape_names():
        raise ConfigurationError(
            f"no model shape is called '{name}'{suggest(name, shape_names())} known: {', '.join(shape_names())}"
        )
    fields: dict[str, Any] = json.loads((_SHAPES / f"{name}.json").read_text(encoding="utf-8"))
    return fields


def named_shape(name: str) -> ModelShape:
    """A shipped shape by name, such as ``llava-1.5-7b``: no weights and no network are needed.

    Raises:
        ConfigurationError: no shape of that name is shipped.
    """
    return ModelShape.from_config(
        json.loads(json.dumps(named_config(name)), object_hook=lambda values: SimpleNamespace(**values))
    )


_LANGUAGE_MODELS = (
    "llama", "mistral", "qwen2", "qwen3", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "glm4v_text", "gemma2",
    "gemma3_text", "cohere2",
)  # fmt: skip
"""Language models with gated MLPs and no experts."""


@family("llama", "mistral", "qwen2", "qwen3")
def _language_model(config: Any) -> ModelShape:
    if config.model_type not in _LANGUAGE_MODELS:
        raise UnsupportedError(
            f"the FLOPs of a '{config.model_type}' language model cannot be counted: known are "
            f"{', '.join(_LANGUAGE_MODELS)} (gated MLP, no experts)"
        )
    return ModelShape(
        family=config.model_type,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocab=config.vocab_size,
        tied=bool(getattr(config, "tie_word_embeddings", False)),
        windows=_windows(config),
    )


def _windows(config: Any) -> tuple[int | None, ...]:
    """By the same rule as :func:`tokcomp.models.causal.decoder_of`."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["full_attention" if window is None else "sliding_attention"] * config.num_hidden_layers
    if window is None or "sliding_attention" not in kinds:
        return ()
    return tuple(window if kind == "sliding_attention" else None for kind in kinds[: config.num_hidden_layers])


_VISION_TOWERS = {
    "clip_vision_model": 1, "siglip_vision_model": 0, "idefics3_vision": 0, "smolvlm_vision": 0, "internvl_vision": 1,
}  # fmt: skip
"""Vision transformers of the common layout, with the number of their prefix tokens."""


def _length(side: Any) -> int:
    return int(side if isinstance(side, int) else side[0])


def combined(config: Any, **vision: Any) -> ModelShape:
    """The language model inside ``config`` with the vision side put in front of it."""
    text = _language_model(config.text_config)
    tied = bool(getattr(config, "tie_word_embeddings", text.tied))
    return ModelShape(**{**vars(text), "family": config.model_type, "tied": tied, **vision})


def vit_tower(vision: Any) -> TowerShape:
    """A tower of CLIP's layout on square images."""
    kind = vision.model_type
    prefix = _VISION_TOWERS.get(kind)
    if prefix is None:
        raise UnsupportedError(
            f"the FLOPs of a '{kind}' vision tower cannot be counted: known are {', '.join(_VISION_TOWERS)}"
        )
    side = _length(vision.image_size) // _length(vision.patch_size)
    return TowerShape(
        hidden=vision.hidden_size,
        intermediate=vision.intermediate_size,
        heads=vision.num_attention_heads,
        head_dim=vision.hidden_size // vision.num_attention_heads,
        blocks=vision.num_hidden_layers,
        patch_inputs=vision.num_channels * _length(vision.patch_size) ** 2,
        prefix=prefix,
        grid=(side, side),
        pooling_head=kind == "siglip_vision_model" and bool(getattr(vision, "vision_use_head", True)),
    )


@family("llava", "llava_next", "llava_onevision")
def _llava(config: Any) -> ModelShape:
    tower = vit_tower(config.vision_config)
    chosen = config.vision_feature_layer
    layers = [chosen] if isinstance(chosen, int) else list(chosen)
    # hidden_states[0] is the embedding, so that hidden_states[i] is the output of block i - 1.
    blocks = [(layer if layer >= 0 else tower.blocks + 1 + layer) - 1 for layer in layers]
    width = config.text_config.hidden_size
    return combined(
        config,
        tower=tower,
        projector=((tower.hidden * len(layers), width), (width, width)),
        feature_block=blocks[0] if len(blocks) == 1 else None,
        feature_prefix=config.vision_feature_select_strategy == "full",
    )


@family("qwen2_vl", "qwen2_5_vl")
def _qwen_vl(config: Any) -> ModelShape:
    vision = config.vision_config
    windows = config.model_type == "qwen2_5_vl"
    hidden = vision.hidden_size if windows else vision.embed_dim
    fused = hidden * vision.spatial_merge_size**2
    tower = TowerShape(
        hidden=hidden,
        intermediate=vision.intermediate_size if windows else int(vision.embed_dim * vision.mlp_ratio),
        heads=vision.num_heads,
        head_dim=hidden // vision.num_heads,
        blocks=vision.depth,
        patch_inputs=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        gated=windows,
        window=(vision.window_size // vision.patch_size) ** 2 if windows else None,
        full_blocks=tuple(vision.fullatt_block_indexes) if windows else (),
    )
    return combined(
        config,
        tower=tower,
        projector=((fused, fused), (fused, config.text_config.hidden_size)),
        merge=vision.spatial_merge_size**2,
        feature_block=vision.depth - 1,
    )
