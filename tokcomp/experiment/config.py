"""The configuration of a run: validated, complete, and with a hash that names it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_validator,
    model_validator,
)

from tokcomp.benchmarks.base import LARGEST_SEED, MOST_SAMPLES, Benchmark, build_benchmark
from tokcomp.errors import ConfigurationError
from tokcomp.experiment.messages import explain_settings
from tokcomp.pipeline import Pipeline, build_strategy
from tokcomp.stages import CachePolicy, PrefillFilter, Strategy, VisionReducer

__all__ = [
    "BudgetConfig",
    "Cache",
    "MeasureConfig",
    "ModelConfig",
    "Prefill",
    "RunConfig",
    "Section",
    "Vision",
    "config_hash",
]


DEVICES = "give cpu, cuda, cuda:N, mps, xpu or auto"


def _spec(part: Strategy | Benchmark | None) -> dict[str, Any]:
    return {"name": "none"} if part is None else dict(part.spec())


_PLAIN = PlainSerializer(_spec)

Vision = Annotated[VisionReducer | None, BeforeValidator(partial(build_strategy, "vision")), _PLAIN]
Prefill = Annotated[PrefillFilter | None, BeforeValidator(partial(build_strategy, "prefill")), _PLAIN]
Cache = Annotated[CachePolicy | None, BeforeValidator(partial(build_strategy, "cache")), _PLAIN]


class Section(BaseModel):
    """A part of a configuration: frozen, and no setting that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Section):
    """Which model answers.

    Attributes:
        name: how it is called in tables.
        weights: ``checkpoint``, or ``random`` for the model's sizes with random weights (cost studies).
        path: Hugging Face id or local folder; None: the embedded model.
        revision: branch, tag or commit of a Hugging Face id.
        attention: the model's own attention implementation.
        device_map: ``auto`` or a device per part of the model, as transformers takes it; None: all on one device.
        trust_remote_code: run code that the checkpoint brings along.
        adapter: dotted path of a function that tells the runner where the model's parts are; None: that of its family.
        prompt: template with ``{question}`` and ``<image>``; None: the processor's chat template.
        shape: sizes for counting FLOPs by name; None: those of the checkpoint's ``config.json``.
        image_tokens: vision tokens of one image for ``tokcomp flops``, of a model whose images have any size.
    """

    name: str = "tiny"
    weights: Literal["checkpoint", "random"] = "checkpoint"
    path: str | None = None
    revision: str | None = None
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    device_map: str | dict[str, str | int] | None = None
    trust_remote_code: bool = False
    adapter: str | None = None
    prompt: str | None = None
    shape: str | None = None
    image_tokens: int | None = Field(default=None, ge=1)

    @field_validator("prompt")
    @classmethod
    def _has_places(cls, prompt: str | None) -> str | None:
        if prompt is not None and "{question}" not in prompt:
            raise ValueError(f"model.prompt={prompt!r} has no place for the question: put {{question}} into it")
        return prompt


class MeasureConfig(Section):
    """What is measured besides the answers.

    Attributes:
        timing: prefill, decoding and end-to-end time.
        repeats: times that the first batch is timed, dense and compressed in turns, after one that warms up.
        memory: peak memory, in a pass of its own.
    """

    timing: bool = True
    repeats: int = Field(default=5, ge=1)
    memory: bool = True


class BudgetConfig(Section):
    """What the pipeline is brought to before it runs; at most one of the three.

    Attributes:
        equivalent_tokens: vision tokens, mean over the language model's layers.
        flops, kv_bytes: shares of the dense model's.
        samples: questions of the calibration split that it is met on. ``tolerance``: how nearly.
    """

    equivalent_tokens: float | None = Field(default=None, gt=0)
    flops: float | None = Field(default=None, gt=0, lt=1)
    kv_bytes: float | None = Field(default=None, gt=0, lt=1)
    samples: int = Field(default=40, ge=1, le=MOST_SAMPLES)
    tolerance: float = Field(default=0.03, gt=0, lt=1)

    @model_validator(mode="after")
    def _one_at_most(self) -> BudgetConfig:
        given = [name for name in _MEASURES if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one budget, not {' and '.join(f'budget.{name}' for name in given)}")
        return self

    @property
    def target(self) -> tuple[Any, float] | None:
        """Measure and value, or None."""
        for name in _MEASURES:
            value = getattr(self, name)
            if value is not None:
                return name, value
        return None


_MEASURES = ("equivalent_tokens", "flops", "kv_bytes")


class RunConfig(Section):
    """Everything that decides a run's result. ``model_dump(mode="json")`` gives back what :meth:`resolve` takes."""

    model: ModelConfig = ModelConfig()
    benchmark: Annotated[Benchmark, BeforeValidator(build_benchmark), _PLAIN] = Field(
        default_factory=lambda: build_benchmark("scenes")
    )
    vision: Vision = None
    prefill: Prefill = None
    cache: Cache = None
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)
    device: str = Field(default="auto", validate_default=True)
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    measure: MeasureConfig = MeasureConfig()
    budget: BudgetConfig = BudgetConfig()
    callbacks: tuple[str, ...] = ()

    @field_validator("callbacks")
    @classmethod
    def _known(cls, callbacks: tuple[str, ...]) -> tuple[str, ...]:
        from tokcomp.experiment.callbacks import find_callback

        for name in callbacks:
            find_callback(name)
        return callbacks

    @field_validator("device")
    @classmethod
    def _resolved(cls, device: str) -> str:
        # The device that is used is part of the record, so that "auto" does not give two machines one hash.
        if device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        # Whether it can be used is asked where a model is loaded: jobs and reports may run on other machines.
        try:
            known = torch.device(device).type in ("cpu", "cuda", "mps", "xpu")
        except RuntimeError:
            known = False
        if not known:
            raise ValueError(f"device={device} is not known: {DEVICES}")
        return device

    @classmethod
    def resolve(cls, settings: Mapping[str, Any]) -> RunConfig:
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
                "measure": tuple(MeasureConfig.model_fields),
                "budget": tuple(BudgetConfig.model_fields),
            }
            raise ConfigurationError(explain_settings(error, "`tokcomp run`", fields)) from None

    @property
    def pipeline(self) -> Pipeline:
        """The three stages."""
        return Pipeline(vision=self.vision, prefill=self.prefill, cache=self.cache)

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


def config_hash(config: RunConfig) -> str:
    """SHA-256 of the canonical JSON of the configuration, hexadecimal; a changed default is another hash. Callbacks are told of
    results and decide none, so they do not count."""
    canonical = json.dumps(
        config.model_dump(mode="json", exclude={"callbacks"}), sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(canonical.encode()).hexdigest()
