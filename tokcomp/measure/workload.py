"""A plain description of the work that one prompt makes: how many tokens pass through which part of the model.

Counts may be fractions where they are means or assumptions; counts that were recorded are integers, and everything
computed from integers stays exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tokcomp.errors import ConfigurationError
from tokcomp.measure.shape import ModelShape, TowerShape

__all__ = ["ImageWork", "ScoreWork", "Workload", "dense_workload", "growing_lengths", "require_tower"]


@dataclass(frozen=True, kw_only=True)
class ImageWork:
    """The work of one image (or one tile of a high-resolution image).

    Attributes:
        patches: patches that the patch embedding computes.
        tower_tokens: tokens, prefix included, that enter each tower block that runs; blocks after the last entry do
            not run.
        mlp_tokens: tokens that enter each block's MLP, where a reducer acts between attention and MLP (ToMe) or only the
            attention runs (0); None: as many as enter the block.
        pooled: tokens that SigLIP's pooling head reads; None: as many as enter the last block.
        projector_tokens: tokens that the projector computes.
    """

    patches: float
    tower_tokens: tuple[float, ...]
    projector_tokens: float
    mlp_tokens: tuple[float, ...] | None = None
    pooled: float | None = None

    def __post_init__(self) -> None:
        if self.mlp_tokens is not None and len(self.mlp_tokens) != len(self.tower_tokens):
            raise ValueError(
                f"mlp_tokens names {len(self.mlp_tokens)} blocks and tower_tokens {len(self.tower_tokens)}: give one "
                "number per block that runs in both"
            )


@dataclass(frozen=True, kw_only=True)
class ScoreWork:
    """Attention scores that are computed only so that a strategy can look at them (queries times keys, all heads).

    Attributes:
        part: whose heads: the tower's or the language model's.
        rows, keys: query rows and keys of the score matrix.
        projected: queries and keys are projected for it as well, because the layer that they belong to has not run.
    """

    part: Literal["tower", "language"]
    rows: float
    keys: float
    projected: bool = False


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The work of one prompt and of the answer to it.

    Attributes:
        images: the images of the prompt.
        text_tokens: text tokens of the prompt; they are part of ``layer_tokens``.
        layer_tokens: text and vision tokens that enter each language-model layer in the prefill.
        decode_lengths: for each decoding step and layer, the cache entries that the step's attention reads, its own
            included. Generating t tokens takes the prefill and t - 1 steps.
        logits_rows: rows that the head computes in the prefill: 1 in ``generate``, the prompt's length in ``forward``.
        scores: attention scores computed for strategies on top of the model's own work.
    """

    layer_tokens: tuple[float, ...]
    images: tuple[ImageWork, ...] = ()
    text_tokens: float = 0
    decode_lengths: tuple[tuple[float, ...], ...] = ()
    logits_rows: float = 1
    scores: tuple[ScoreWork, ...] = ()

    def __post_init__(self) -> None:
        layers = len(self.layer_tokens)
        if any(len(step) != layers for step in self.decode_lengths):
            raise ValueError(f"every decoding step needs one cache length per layer ({layers}, as layer_tokens has)")

    @property
    def new_tokens(self) -> int:
        """Tokens that are generated: one by the prefill, one by each decoding step."""
        return 1 + len(self.decode_lengths)

    @property
    def vision_tokens(self) -> tuple[float, ...]:
        """Vision tokens that enter each language-model layer in the prefill."""
        return tuple(tokens - self.text_tokens for tokens in self.layer_tokens)


def growing_lengths(after_prefill: Sequence[float], new_tokens: int) -> tuple[tuple[float, ...], ...]:
    """Cache lengths at each decoding step when every step adds one entry to every layer and nothing leaves."""
    return tuple(tuple(length + step for length in after_prefill) for step in range(1, new_tokens))


def dense_workload(shape: ModelShape, *, image_tokens: int, text_tokens: int, images: int = 1, new_tokens: int = 1,
                   logits_rows: int = 1) -> Workload:  # fmt: skip
    """The work of the unmodified model.

    Args:
        shape: the model.
        image_tokens: vision tokens that one image contributes to the prompt.
        text_tokens: text tokens of the prompt.
        images: images in the prompt (of equal size).
        new_tokens: tokens to generate, the prefill's own included.
        logits_rows: rows that the head computes in the prefill.

    Raises:
        ConfigurationError: images are asked of a model without a vision tower.
    """
    work: tuple[ImageWork, ...] = ()
    if images and image_tokens:
        tower = require_tower(shape)
        patches = image_tokens * shape.merge
        entering = (patches + tower.prefix,) * tower.blocks
        through = image_tokens + (tower.prefix if shape.feature_prefix else 0)
        work = (ImageWork(patches=patches, tower_tokens=entering, projector_tokens=through),) * images
    length = images * image_tokens + text_tokens
    layer_tokens = (length,) * shape.layers
    return Workload(
        images=work,
        text_tokens=text_tokens,
        layer_tokens=layer_tokens,
        decode_lengths=growing_lengths(layer_tokens, new_tokens),
        logits_rows=logits_rows,
    )


def require_tower(shape: ModelShape) -> TowerShape:
    """The model's vision tower.

    Raises:
        ConfigurationError: it has none.
    """
    if shape.tower is None:
        raise ConfigurationError(f"a '{shape.family}' model has no vision tower: give images=0")
    return shape.tower
