"""The interface of a benchmark: questions about images, and how right an answer is.

A benchmark is a frozen pydantic model, as a strategy is: its fields are its settings. Adding one is a subclass in a file
of this folder, its line in ``_BUILT_IN`` and an option file of the same name in ``configs/benchmark``. Others add theirs by
the decorator :func:`register_benchmark`, by the entry-point group ``tokcomp.benchmarks`` (name = class, or a module that
registers) or by a dotted path (``benchmark=my_pkg.questions:Questions``).
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any, ClassVar

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokcomp.errors import ConfigurationError, PluginError, suggest
from tokcomp.experiment.messages import explain_settings
from tokcomp.plugins import dotted_path, import_object, is_path, load_group, origin_of

__all__ = ["Benchmark", "Sample", "benchmark_class", "benchmark_names", "build_benchmark",
           "plugin_names", "register_benchmark"]  # fmt: skip

LARGEST_SEED = 2**64 - 1
"""The largest seed that torch takes."""

MOST_SAMPLES = 1_000_000
"""More questions would fill the memory before the first one is answered."""

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
    home: ClassVar[str] = ""
    """The dotted path that stands for the name in a configuration, of a benchmark that no other process would know by it."""

    samples: int = Field(default=200, ge=1, le=MOST_SAMPLES, description="number of questions")
    batch_size: int = Field(default=20, ge=1, description="prompts per forward pass")
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED, description="chooses the questions")
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
        return {"name": self.home or self.name, **self.model_dump(mode="json")}


_registered: dict[str, type[Benchmark]] = {}


def register_benchmark(name: str) -> Callable[[type[Benchmark]], type[Benchmark]]:
    """Class decorator that registers a benchmark under ``name``.

    Raises:
        PluginError: the class is no concrete benchmark, or the name is taken.
    """

    def add(cls: type[Benchmark]) -> type[Benchmark]:
        _refuse_wrong(f"benchmark '{name}'", cls)
        taken = _registered.get(name)
        if name in _BUILT_IN or (taken is not None and _place(taken) != _place(cls)):
            by = _BUILT_IN[name] if taken is None else _place(taken)
            raise PluginError(f"benchmark '{name}' ({_place(cls)}): the name is taken by {by}; choose another")
        cls.name = name
        cls.home = dotted_path(cls) if origin_of(cls).kind == "module" else ""
        _registered[name] = cls
        return cls

    return add


def _place(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _refuse_wrong(where: str, cls: Any) -> None:
    if not (isinstance(cls, type) and issubclass(cls, Benchmark)):
        raise PluginError(f"{where} is not a subclass of {Benchmark.__module__}.Benchmark")
    if inspect.isabstract(cls):
        raise PluginError(f"{where} ({_place(cls)}) does not define {', '.join(sorted(cls.__abstractmethods__))}")


@cache
def _load_plugins() -> None:
    """Import every installed benchmark once; one that fails is named in a warning and the others go on."""

    def take(point: EntryPoint, found: Any) -> None:
        if not isinstance(found, ModuleType) and found not in _registered.values():
            register_benchmark(point.name)(found)

    load_group(_GROUP, take)


def plugin_names() -> tuple[str, ...]:
    """Names of the benchmarks that are not built in."""
    _load_plugins()
    return tuple(sorted(_registered))


def benchmark_names() -> tuple[str, ...]:
    """Names of all benchmarks, those of installed packages included."""
    return tuple(sorted({*_BUILT_IN, *plugin_names()}))


def benchmark_class(name: str) -> type[Benchmark]:
    """The benchmark called ``name``, or the one that a dotted path (``my_pkg.questions:Questions``) names.

    Raises:
        ConfigurationError: there is none.
        PluginError: what a dotted path names is no benchmark.
    """
    if name in _BUILT_IN:
        return import_object(_BUILT_IN[name])
    if is_path(name):
        cls = import_object(name)
        _refuse_wrong(f"benchmark={name}", cls)
        if cls not in _registered.values():
            cls.home = dotted_path(cls) or name
            cls.name = cls.__dict__.get("name") or cls.home
        return cls
    known = benchmark_names()
    if name not in _registered:
        raise ConfigurationError(f"unknown benchmark '{name}'{suggest(name, known)} known: {', '.join(known)}")
    return _registered[name]


def build_benchmark(spec: str | Mapping[str, Any] | Benchmark) -> Benchmark:
    """A benchmark from its name, a name with its settings, or itself.

    Raises:
        ConfigurationError: an unknown name or setting, or a value out of range.
    """
    if isinstance(spec, Benchmark):
        return spec
    settings = {"name": spec} if isinstance(spec, str) else dict(spec)
    cls = benchmark_class(str(settings.pop("_target_", None) or settings.pop("name", "")))
    try:
        return cls(**settings)
    except ValidationError as error:
        fields = {"": tuple(cls.model_fields)}
        raise ConfigurationError(
            explain_settings(error, f"benchmark '{cls.name}'", fields, prefix="benchmark.")
        ) from None
