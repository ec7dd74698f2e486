"""The interface of a benchmark: questions about images, and how right an answer is.

A benchmark is a frozen pydantic model, as a strategy is: its fields are its settings. Adding one is a subclass in a file
of this folder, its import in :func:`benchmark_class` and an option file of the same name in ``configs/benchmark``.
Installed packages add benchmarks by the entry-point group ``tokcomp.benchmarks`` (name = class).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, ClassVar

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokcomp.errors import ConfigurationError, PluginError, suggest
from tokcomp.experiment.messages import explain_settings

__all__ = ["Benchmark", "Sample", "benchmark_class", "benchmark_names", "build_benchmark"]

_GROUP = "tokcomp.benchmarks"
_BUILT_IN = {
    "scenes": "tokcomp.benchmarks.scenes:Scenes",
    "scenes-hard": "tokcomp.benchmarks.scenes_hard:ScenesHard",
}


@dataclass(frozen=True, eq=False)
class Sample:
    """One question.

    Attributes:
        id: unique within the benchmark and stable between runs.
        images: the images that the question is about, in the order of the prompt.
        question: the question alone; the model's own template is put around it.
        answer: the expected answer.
        kind: the group that it is reported in.
    """

    id: str
    images: tuple[Image.Image, ...]
    question: str
    answer: str
    kind: str


class Benchmark(BaseModel, ABC):
    """A list of questions and the way they are scored.

    Attributes:
        samples: number of questions.
        batch_size: prompts per forward pass.
        seed: chooses the questions where there is a choice.
        max_new_tokens: longest answer, in tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str] = ""

    samples: int = Field(default=200, ge=1, description="number of questions")
    batch_size: int = Field(default=20, ge=1, description="prompts per forward pass")
    seed: int = Field(default=0, ge=0, description="chooses the questions")
    max_new_tokens: int = Field(default=16, ge=1, description="longest answer, in tokens")

    @abstractmethod
    def load(self) -> Sequence[Sample]:
        """The questions; the same settings give the same ones.

        Raises:
            ConfigurationError: what they are made from is not installed or not there.
        """

    @abstractmethod
    def score(self, prediction: str, sample: Sample) -> float:
        """How right ``prediction`` is, from 0 to 1."""

    def headline(self, kind: str) -> bool:
        """Whether questions of ``kind`` count in the overall accuracy (they are reported by kind in any case)."""
        return True

    def spec(self) -> dict[str, Any]:
        """The benchmark as plain data, ``{"name": ..., settings...}``."""
        return {"name": self.name, **self.model_dump(mode="json")}


def benchmark_names() -> tuple[str, ...]:
    """Names of all benchmarks, those of installed packages included."""
    return tuple(sorted({*_BUILT_IN, *(point.name for point in entry_points(group=_GROUP))}))


def benchmark_class(name: str) -> type[Benchmark]:
    """The benchmark called ``name``.

    Raises:
        ConfigurationError: there is none.
        PluginError: an installed package gave something else than a benchmark.
    """
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        return getattr(import_module(module), attribute)
    for point in entry_points(group=_GROUP, name=name):
        cls = point.load()
        if not (isinstance(cls, type) and issubclass(cls, Benchmark)):
            raise PluginError(
                f"benchmark '{name}' ({point.value}) is not a subclass of {Benchmark.__module__}.Benchmark"
            )
        cls.name = name
        return cls
    known = benchmark_names()
    raise ConfigurationError(f"unknown benchmark '{name}'{suggest(name, known)} known: {', '.join(known)}")


def build_benchmark(spec: str | Mapping[str, Any] | Benchmark) -> Benchmark:
    """A benchmark from its name, a name with its settings, or itself.

    Raises:
        ConfigurationError: an unknown name or setting, or a value out of range.
    """
    if isinstance(spec, Benchmark):
        return spec
    settings = {"name": spec} if isinstance(spec, str) else dict(spec)
    cls = benchmark_class(str(settings.pop("name", "")))
    try:
        return cls(**settings)
    except ValidationError as error:
        fields = {"": tuple(cls.model_fields)}
        raise ConfigurationError(
            explain_settings(error, f"benchmark '{cls.name}'", fields, prefix="benchmark.")
        ) from None
