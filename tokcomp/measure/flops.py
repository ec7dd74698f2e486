"""Floating-point operations, counted analytically per part and per layer from a plain description of the work.

The convention is that of ``torch.utils.flop_counter.FlopCounterMode``, against which the tests check every family:
a multiply-add is 2 FLOPs; only matrix products and convolutions count (no norms, activations, softmax, rotations,
biases or embeddings look-ups); attention is the full rectangle of queries and keys, ``2 * 2 * q * k * head_dim`` per
query head, with no discount for the causal triangle. Padding of a batch is not work: count each sample by itself and
add. A layer with a window attends to that many keys at most, as kernels that know windows compute it (a mask over
full rows makes the full rectangle). What a strategy computes by itself (matching, clustering) is not counted either;
the attention scores that are computed only for a strategy are, as ``selection``.

LLaVA-1.5-7B with 576 image and 64 text tokens, logits for all rows: 9.0782 TFLOPs (tower 0.3819, projector 0.0242,
language model 8.5040, head 0.1681).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tokcomp.measure.shape import ModelShape, TowerShape
from tokcomp.measure.workload import ImageWork, ScoreWork, Workload, require_tower

__all__ = ["FlopCount", "count", "count_all"]


@dataclass(frozen=True, kw_only=True)
class FlopCount:
    """FLOPs by part; ``a + b`` adds two counts of the same model.

    Attributes:
        patch_embedding: the tower's first convolution.
        tower_blocks: each block of the tower, all images together.
        tower_head: SigLIP's pooling head (0 in other towers).
        projector: the layers between tower and language model.
        prefill_layers: each language-model layer while the prompt is processed.
        decode_layers: each language-model layer, all decoding steps together.
        prefill_head, decode_head: the output head in the prefill and in all decoding steps.
        selection: attention scores computed only for strategies.
    """

    tower_blocks: tuple[float, ...]
    prefill_layers: tuple[float, ...]
    decode_layers: tuple[float, ...]
    patch_embedding: float = 0
    tower_head: float = 0
    projector: float = 0
    prefill_head: float = 0
    decode_head: float = 0
    selection: float = 0

    @property
    def tower(self) -> float:
        """The whole vision tower."""
        return self.patch_embedding + sum(self.tower_blocks) + self.tower_head

    @property
    def prefill(self) -> float:
        """All language-model layers while the prompt is processed, head not included."""
        return sum(self.prefill_layers)

    @property
    def decode(self) -> float:
        """All language-model layers in all decoding steps, head not included."""
        return sum(self.decode_layers)

    @property
    def head(self) -> float:
        """The output head, prefill and decoding together."""
        return self.prefill_head + self.decode_head

    @property
    def first_token(self) -> float:
        """Everything until the first token: tower, projector, prefill, its head rows and the selection."""
        return self.tower + self.projector + self.prefill + self.prefill_head + self.selection

    @property
    def total(self) -> float:
        return self.tower + self.projector + self.prefill + self.decode + self.head + self.selection

    def by_part(self) -> dict[str, float]:
        """``{"tower", "projector", "prefill", "decode", "head", "selection", "total"}``, in FLOPs."""
        parts = ("tower", "projector", "prefill", "decode", "head", "selection", "total")
        return {part: getattr(self, part) for part in parts}

    def __add__(self, other: FlopCount) -> FlopCount:
        mine, theirs = vars(self), vars(other)
        added: dict[str, Any] = {}
        for name, value in mine.items():
            if isinstance(value, tuple):
                added[name] = tuple(a + b for a, b in zip(value, theirs[name], strict=True))
            else:
                added[name] = value + theirs[name]
        return FlopCount(**added)


def count(model: ModelShape | Any, workload: Workload) -> FlopCount:
    """FLOPs of one prompt and its answer.

    Args:
        model: a :class:`ModelShape` or a transformers configuration.
        workload: how many tokens pass through which part.

    Raises:
        UnsupportedError: the configuration's layout is not known.
        ValueError: the workload names other numbers of layers or blocks than the model has.
    """
    shape = model if isinstance(model, ModelShape) else ModelShape.from_config(model)
    if len(workload.layer_tokens) != shape.layers:
        raise ValueError(f"layer_tokens has {len(workload.layer_tokens)} entries, the model {shape.layers} layers")
    blocks, patches, head, projector = _vision(shape, workload.images)
    row = 2 * shape.hidden * shape.vocab
    steps = workload.decode_lengths
    return FlopCount(
        patch_embedding=patches,
        tower_blocks=blocks,
        tower_head=head,
        projector=projector,
        prefill_layers=tuple(
            _layer(shape, tokens, shape.reach(layer, tokens)) for layer, tokens in enumerate(workload.layer_tokens)
        ),
        decode_layers=tuple(
            sum(_layer(shape, 1, shape.reach(layer, step[layer])) for step in steps) for layer in range(shape.layers)
        ),
        prefill_head=workload.logits_rows * row,
        decode_head=len(steps) * row,
        selection=sum(_scores(shape, work) for work in workload.scores),
    )


def count_all(model: ModelShape | Any, workloads: Iterable[Workload]) -> FlopCount:
    """FLOPs of several prompts together (at least one)."""
    shape = model if isinstance(model, ModelShape) else ModelShape.from_config(model)
    first, *others = (count(shape, workload) for workload in workloads)
    for other in others:
        first = first + other
    return first


def _transformer_block(tokens: float, pairs: float, mlp_tokens: float, *, hidden: int, query: int, key_value: int,
                       mlp: int) -> float:  # fmt: skip
    """One block: projections of ``tokens``, attention over ``pairs`` of query and key, MLP of ``mlp_tokens``."""
    projections = 2 * tokens * hidden * (2 * query + 2 * key_value)
    return projections + 4 * pairs * query + 2 * mlp_tokens * mlp


def _layer(shape: ModelShape, tokens: float, keys: float) -> float:
    return _transformer_block(
        tokens,
        tokens * keys,
        tokens,
        hidden=shape.hidden,
        query=shape.heads * shape.head_dim,
        key_value=shape.kv_heads * shape.head_dim,
        mlp=shape.hidden * shape.intermediate * (3 if shape.gated else 2),
    )


def _vision(shape: ModelShape, images: tuple[ImageWork, ...]) -> tuple[tuple[float, ...], float, float, float]:
    """Blocks, patch embedding, pooling head and projector, all images together."""
    if not images:
        return (0,) * (shape.tower.blocks if shape.tower else 0), 0, 0, 0
    tower = require_tower(shape)
    longest = max(len(image.tower_tokens) for image in images)
    if longest > tower.blocks:
        raise ValueError(f"tower_tokens has {longest} entries, the tower {tower.blocks} blocks")
    blocks = tuple(
        sum(_tower_block(tower, image, block) for image in images if block < len(image.tower_tokens))
        for block in range(tower.blocks)
    )
    patches = sum(2 * image.patches * tower.hidden * tower.patch_inputs for image in images)
    head = sum(_pooling_head(tower, image) for image in images) if tower.pooling_head else 0
    per_token = sum(2 * inputs * outputs for inputs, outputs in shape.projector)
    return blocks, patches, head, sum(image.projector_tokens * per_token for image in images)


def _tower_block(tower: TowerShape, image: ImageWork, block: int) -> float:
    tokens = image.tower_tokens[block]
    windowed = tower.window is not None and block not in tower.full_blocks
    # Windows are taken as full: at the image's edges, where they are not, this counts up to a few per cent too much.
    keys = min(tokens, tower.window) if windowed and tower.window else tokens
    width = tower.heads * tower.head_dim
    return _transformer_block(
        tokens,
        tokens * keys,
        tokens if image.mlp_tokens is None else image.mlp_tokens[block],
        hidden=tower.hidden,
        query=width,
        key_value=width,
        mlp=tower.hidden * tower.intermediate * (3 if tower.gated else 2),
    )


def _pooling_head(tower: TowerShape, image: ImageWork) -> float:
    """One probe attends to all tokens (2 projections each for probe and tokens), then an MLP on the probe alone."""
    tokens = image.tower_tokens[-1] if image.pooled is None else image.pooled
    projections = 2 * tower.hidden**2 * (2 + 2 * tokens)
    return projections + 4 * tokens * tower.hidden + 4 * tower.hidden * tower.intermediate


def _scores(shape: ModelShape, work: ScoreWork) -> float:
    stack = require_tower(shape) if work.part == "tower" else shape
    scores = 2 * work.rows * work.keys * stack.heads * stack.head_dim
    if not work.projected:
        return scores
    width = work.rows * stack.heads + work.keys * shape.kv_heads
    return scores + 2 * width * stack.head_dim * shape.hidden
