"""What happened to one image and its question, in the form in which it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from tokcomp.errors import UnsupportedError
from tokcomp.experiment.load import LoadedModel
from tokcomp.models.adapter import Call, find_adapter
from tokcomp.pipeline import Pipeline
from tokcomp.runner.arguments import cache_name
from tokcomp.runner.cache import CompressedLayer
from tokcomp.runner.tables import filled
from tokcomp.runner.trace import Record, Trace

__all__ = ["CacheStory", "Story", "seen_image", "tell"]

Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class CacheStory:
    """Entries of each layer's key/value cache, text included.

    Attributes:
        dense: of the unmodified model after the prefill and at the end of its answer, the same in every layer.
        prefill, end: of the compressed model, by layer; where heads differ, their mean.
        share: ``[n]`` share of the layers' heads that hold each patch's token at the end; None without a cache policy.
    """

    dense: tuple[int, int]
    prefill: tuple[float, ...]
    end: tuple[float, ...]
    share: NDArray[np.float64] | None = None


@dataclass(frozen=True, kw_only=True)
class Story:
    """One question, answered by the dense and by the compressed model. Arrays over the n patches are in raster order.

    Attributes:
        seen: ``[h, w, 3]`` the picture as the model saw it (resized, cropped), 0 to 1.
        grid: rows and columns of patches.
        question: as it was asked. ``dense``, ``compressed``: the answers.
        owner: ``[n]`` the patch at which the token stands that holds each patch after the vision stage, -1 for dropped.
        keys: ``[n]`` patches at which a key token stands.
        alive: by layer after which the filter acts: ``[n]`` whether each patch's token went on.
        vision_tokens: vision tokens that enter each layer.
        image_tokens, after_vision, equivalent_tokens: as :class:`~tokcomp.runner.trace.Record` has them.
        cache: the key/value cache.
        new_tokens: tokens of the dense and of the compressed answer.
    """

    seen: NDArray[np.float64]
    grid: tuple[int, int]
    question: str
    dense: str
    compressed: str
    owner: NDArray[np.int64]
    keys: Flags
    alive: dict[int, Flags]
    vision_tokens: tuple[int, ...]
    image_tokens: int
    after_vision: int
    equivalent_tokens: float
    cache: CacheStory
    new_tokens: tuple[int, int]


def tell(
    loaded: LoadedModel, image: Image.Image, question: str, pipeline: Pipeline, *, max_new_tokens: int = 64
) -> Story:
    """Ask the model with and without the pipeline and keep what happened to every patch.

    Raises:
        UnsupportedError: the model does not turn the image into one grid of patches.
        CompatibilityError: the pipeline does not fit the model.
    """
    inputs = loaded.inputs([question], [[image]])
    ids = loaded.generate(inputs, max_new_tokens)
    prompt, dense_new = int(inputs["attention_mask"].sum()), loaded.lengths(ids)[0]
    grid = _grid(loaded, inputs)
    cache = DynamicCache(config=loaded.model.config.get_text_config())
    with pipeline.attach(loaded.model) as trace:
        watch = _AfterPrefill(trace)
        compressed_ids = loaded.generate({**inputs, cache_name(loaded.model): cache}, max_new_tokens, watch)
        record = trace.last
        lengths = _one_sample(record.cache_lengths)
    _refuse_other_grid(record, grid)
    owner, layers = _owners(record), record.kept
    depth = len(layers)
    # An all-none pipeline leaves the cache to the model: every layer holds the whole prompt.
    untouched = (float(cache.get_seq_length()),) * depth
    return Story(
        seen=seen_image(inputs["pixel_values"][0], loaded.processor),
        grid=grid,
        question=question,
        dense=loaded.texts(ids)[0],
        compressed=loaded.texts(compressed_ids)[0],
        owner=owner,
        keys=_flags(record.protected[0], owner.size),
        alive={layer: _alive(layers[layer + 1][0], owner) for layer in _cuts(pipeline, depth)},
        vision_tokens=tuple(layer[0] for layer in record.vision_tokens),
        image_tokens=record.image_tokens[0],
        after_vision=record.after_vision[0],
        equivalent_tokens=record.equivalent_tokens[0],
        cache=CacheStory(
            dense=(prompt, prompt + dense_new - 1),
            prefill=watch.lengths or (float(prompt),) * depth,
            end=lengths or untouched,
            share=None if pipeline.cache is None else _cached_share(cache, owner),
        ),
        new_tokens=(dense_new, loaded.lengths(compressed_ids)[0]),
    )


def _refuse_other_grid(record: Record, grid: tuple[int, int]) -> None:
    if record.image_tokens[0] != grid[0] * grid[1]:
        raise UnsupportedError(
            f"this model turns the image into {record.image_tokens[0]} tokens, not into one grid of {grid[0]} x {grid[1]} "
            "patches: its picture cannot be drawn"
        )


class _AfterPrefill:
    """A logits processor that notes the cache's lengths when the first token is due and changes nothing."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.lengths: tuple[float, ...] | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.lengths is None:
            self.lengths = _one_sample(self.trace.last.cache_lengths)
        return scores


def _one_sample(layers: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(float(layer[0]) for layer in layers)


def _grid(loaded: LoadedModel, inputs: dict[str, Any]) -> tuple[int, int]:
    tower, pixels = find_adapter(loaded.model).tower, inputs.get("pixel_values")
    if tower is None or pixels is None or pixels.dim() != 4 or pixels.shape[0] != 1:
        raise UnsupportedError(
            f"{type(loaded.model).__name__} does not see the image as one grid of patches: its picture cannot be drawn"
        )
    return tower.layout(Call("image", pixels)).grids[0]


def seen_image(pixels: Tensor, processor: Any) -> NDArray[np.float64]:
    """The picture ``[h, w, 3]``, 0 to 1, that the pixel values ``[3, h, w]`` of a processor show: normalisation undone."""
    values = pixels.detach().double().cpu().numpy().transpose(1, 2, 0)
    images = processor.image_processor
    if getattr(images, "do_normalize", False):
        values = values * np.asarray(images.image_std) + np.asarray(images.image_mean)
    return np.clip(values, 0.0, 1.0)


def _owners(record: Record) -> NDArray[np.int64]:
    return np.array([-1 if fate.into is None else fate.into for fate in record.fate[0]])


def _flags(indices: Tensor, size: int) -> Flags:
    flags = np.zeros(size, dtype=bool)
    flags[indices.numpy()] = True
    return flags


def _alive(kept: Tensor, owner: NDArray[np.int64]) -> Flags:
    """Which patches' tokens are among ``kept``."""
    return _flags(kept, owner.size)[owner] & (owner >= 0)


def _cuts(pipeline: Pipeline, depth: int) -> tuple[int, ...]:
    return () if pipeline.prefill is None else tuple(pipeline.prefill.acts_after(depth))


def _cached_share(cache: DynamicCache, owner: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of all layers' heads that still hold each patch's token ``[n]``."""
    held, heads = np.zeros(owner.size), 0
    for layer in cache.layers:
        if not isinstance(layer, CompressedLayer):
            raise TypeError(f"expected a compressed cache, got a layer of type {type(layer).__name__}")
        origin = layer.request.prompt.origin[0]
        index = layer.full_index()[0].cpu()  # (1|g, l)
        # The table tells of the entries that were there at the last eviction; those that followed are real.
        valid = (
            filled(layer.valid, index.shape[-1])[0].cpu().expand_as(index) if layer.valid is not None else index >= 0
        )
        for row, real in zip(index, valid, strict=True):
            columns = row[real & (row < origin.numel())]  # what follows the prompt is text
            tokens = origin.cpu()[columns]
            held += np.bincount(tokens[tokens >= 0].numpy(), minlength=owner.size)
            heads += 1
    return np.where(owner >= 0, held[owner] / heads, 0.0)
