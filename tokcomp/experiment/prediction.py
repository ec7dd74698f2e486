"""What a pipeline would save on a model: counted from sizes and from the strategies' fields, without weights or images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError

from tokcomp.errors import ConfigurationError
from tokcomp.experiment.config import Cache, ModelConfig, Prefill, Section, Vision
from tokcomp.experiment.load import load_shape
from tokcomp.experiment.messages import explain_settings
from tokcomp.measure.conventions import Reduction, reductions
from tokcomp.measure.flops import FlopCount, count
from tokcomp.measure.kv import KVBytes, kv_bytes
from tokcomp.measure.roofline import LeastTime, device_spec, least_time
from tokcomp.measure.schedule import Expected, expected_workload
from tokcomp.measure.shape import ModelShape
from tokcomp.measure.workload import Workload
from tokcomp.pipeline import Pipeline

__all__ = ["Prediction", "PredictionConfig", "predict"]

_MOST = 1_000_000
"""Of anything that is counted: layer by layer and step by step, so that more would fill the memory."""


class Assume(Section):
    """Counts to assume where they depend on the image: see :mod:`tokcomp.measure.assumptions`."""

    vision: float | None = Field(default=None, ge=1)
    prefill: float | None = Field(default=None, ge=1)
    cache: float | None = Field(default=None, ge=1)


class PredictionConfig(Section):
    """One prompt on one model.

    Attributes:
        model: whose sizes.
        vision, prefill, cache: the pipeline.
        image_tokens: vision tokens of one image; None: the model's own grid.
        images, text_tokens, text_before, new_tokens: the prompt and its answer.
        logits: rows that the head computes in the prefill: all of them (``forward``), or the last (``generate``).
        dtype: number format of the cache.
        device: where it runs with SDPA: on a CPU the sums over a prompt's rows that a cache policy looks at come with the
            attention, elsewhere they cost a product of their own.
        device_spec: a device whose least times are told: a name, or its FLOP/s and bytes/s.
        batch: samples that share each reading of the weights; matters for the least times only.
        assume: counts for strategies that depend on the image.
    """

    model: ModelConfig = ModelConfig(name="llava-1.5-7b", shape="llava-1.5-7b")
    vision: Vision = None
    prefill: Prefill = None
    cache: Cache = None
    image_tokens: int | None = Field(default=None, ge=1, le=_MOST)
    images: int = Field(default=1, ge=1, le=_MOST)
    text_tokens: int = Field(default=64, ge=0, le=_MOST)
    text_before: int = Field(default=0, ge=0, le=_MOST)
    new_tokens: int = Field(default=1, ge=1, le=_MOST)
    logits: Literal["all", "last"] = "all"
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    device: Literal["cuda", "cpu"] = "cuda"
    device_spec: str | None = None
    batch: int = Field(default=1, ge=1, le=_MOST)
    assume: Assume = Assume()

    @classmethod
    def resolve(cls, settings: Mapping[str, Any]) -> PredictionConfig:
        """The configuration that composed settings give.

        Raises:
            ConfigurationError: an unknown setting, or a value out of range; one line.
        """
        try:
            return cls.model_validate(dict(settings))
        except ValidationError as error:
            fields = {
                "": tuple(cls.model_fields),
                "model": tuple(ModelConfig.model_fields),
                "assume": tuple(Assume.model_fields),
            }
            raise ConfigurationError(explain_settings(error, "`tokcomp flops`", fields)) from None


@dataclass(frozen=True)
class Prediction:
    """Both sides of the comparison.

    Attributes:
        config: the prompt and the model.
        dense, compressed: FLOPs by part.
        dense_tokens, compressed_tokens: tokens by layer.
        dense_cache, compressed_cache: bytes of the cache after the prefill.
        dense_time, compressed_time: the least times on ``device_spec``; None without one.
        reductions: the share that is saved, by each published way of counting.
        assumptions: one sentence for every number that does not follow from the strategies' fields.
    """

    config: PredictionConfig
    dense: FlopCount
    compressed: FlopCount
    dense_tokens: Expected
    compressed_tokens: Expected
    dense_cache: KVBytes
    compressed_cache: KVBytes
    dense_time: LeastTime | None
    compressed_time: LeastTime | None
    reductions: tuple[Reduction, ...]
    assumptions: tuple[str, ...]


def predict(config: PredictionConfig) -> Prediction:
    """Count the prompt of ``config`` for the unmodified and for the compressed model.

    Raises:
        ConfigurationError: counts that depend on the image, for which nothing is known or given; a model without a grid
            of its own and no ``image_tokens``.
        CompatibilityError: a strategy that does not fit the model's depth.
        UnsupportedError: a model whose arithmetic is not known.
    """
    shape = load_shape(config.model)
    pipeline = Pipeline(vision=config.vision, prefill=config.prefill, cache=config.cache)
    dense = _expected(config, shape, None, {})
    given = {stage: tokens for stage, tokens in config.assume.model_dump().items() if tokens is not None}
    compressed = _expected(config, shape, pipeline, given)
    works = _with_logits(config, dense), _with_logits(config, compressed)
    counts = count(shape, works[0]), count(shape, works[1])
    return Prediction(
        config=config,
        dense=counts[0],
        compressed=counts[1],
        dense_tokens=dense,
        compressed_tokens=compressed,
        dense_cache=_cache(config, shape, dense),
        compressed_cache=_cache(config, shape, compressed),
        dense_time=_least_time(config, shape, counts[0], dense),
        compressed_time=_least_time(config, shape, counts[1], compressed),
        reductions=reductions(shape, *works) if pipeline != Pipeline() else (),
        assumptions=(*_assumed_image(config), *compressed.assumptions),
    )


def _expected(
    config: PredictionConfig, shape: ModelShape, pipeline: Pipeline | None, given: dict[str, float]
) -> Expected:
    return expected_workload(
        shape,
        pipeline,
        image_tokens=_image_tokens(config, shape),
        text_tokens=config.text_tokens,
        images=config.images,
        new_tokens=config.new_tokens,
        text_before=config.text_before,
        assume=given,
        summed=config.device == "cpu",
    )


def _image_tokens(config: PredictionConfig, shape: ModelShape) -> int:
    if config.image_tokens is not None:
        return config.image_tokens
    if config.model.image_tokens is not None:
        return config.model.image_tokens
    if shape.tower is None or shape.tower.grid is None:
        raise ConfigurationError(f"model '{config.model.name}' has no image size of its own: give image_tokens=N")
    rows, columns = shape.tower.grid
    return rows * columns // shape.merge + (shape.tower.prefix if shape.feature_prefix else 0)


def _assumed_image(config: PredictionConfig) -> tuple[str, ...]:
    tokens = config.model.image_tokens
    if tokens is None or config.image_tokens is not None:
        return ()
    return (
        f"an image of {config.model.name} may have any size: {tokens} tokens are assumed (image_tokens=N for others)",
    )


def _with_logits(config: PredictionConfig, expected: Expected) -> Workload:
    """All rows are those that leave the last layer."""
    work = expected.workload
    return work if config.logits == "last" else replace(work, logits_rows=config.text_tokens + expected.leaving[-1])


def _least_time(config: PredictionConfig, shape: ModelShape, flops: FlopCount, expected: Expected) -> LeastTime | None:
    if config.device_spec is None:
        return None
    dtype: torch.dtype = getattr(torch, config.dtype)
    return least_time(shape, flops, expected.cache_lengths, device_spec(config.device_spec), new_tokens=config.new_tokens,
                      batch=config.batch, bytes_per_number=dtype.itemsize)  # fmt: skip


def _cache(config: PredictionConfig, shape: ModelShape, expected: Expected) -> KVBytes:
    dtype: torch.dtype = getattr(torch, config.dtype)
    return kv_bytes(expected.cache_lengths, kv_heads=shape.kv_heads, head_dim=shape.head_dim, dtype=dtype)
