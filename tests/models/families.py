"""Tiny random models of every family, shared by all tests that run over families.

A family is a model from config (no network) and a recipe for samples. Adding one: a module in this folder whose functions
``@family(...)`` registers. ``tests/models/test_families.py`` then tests it by its existing.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tests.tiny_models import PAD

__all__ = ["Family", "Sample", "batch_of", "families", "family", "models", "roughen", "spread"]

Sample = dict[str, Any]
"""What a model takes of one prompt (a batch of one)."""


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        name: as in the support table.
        build: ``(attention) -> model``, on CPU, in evaluation mode.
        sample: ``(images, seed) -> inputs`` of one prompt with that many images, text before, between and after them;
            another seed gives other images (of other sizes, where the family takes them) and other text.
        video: ``(seed) -> inputs`` of one prompt with a video, or None.
        batch: ``(samples) -> inputs``, left-padded.
    """

    name: str
    build: Callable[[str], nn.Module]
    sample: Callable[[int, int], Sample]
    video: Callable[[int], Sample] | None
    batch: Callable[[Sequence[Sample]], Sample]

    @cache  # noqa: B019  (families live as long as the tests)
    def model(self, attention: str = "sdpa") -> Any:
        return self.build(attention)


_FAMILIES: dict[str, Family] = {}


def family(name: str, sample: Callable[[int, int], Sample], *, video: Callable[[int], Sample] | None = None,
           batch: Callable[[Sequence[Sample]], Sample] | None = None) -> Any:  # fmt: skip
    """Decorator of the function that builds a family's model."""

    def add(build: Callable[[str], nn.Module]) -> Callable[[str], nn.Module]:
        assert name not in _FAMILIES, name
        _FAMILIES[name] = Family(name, build, sample, video, batch or batch_of)
        return build

    return add


@cache
def families() -> dict[str, Family]:
    """All families, by name."""
    for module in pkgutil.iter_modules([__file__.rpartition("/")[0]]):
        if not module.name.startswith("test_"):
            importlib.import_module(f"tests.models.{module.name}")
    return dict(_FAMILIES)


def models(name: str, attention: str = "sdpa") -> Any:
    """The (shared) model of a family."""
    return families()[name].model(attention)


def batch_of(samples: Sequence[Sample]) -> Sample:
    """Left-padded ``input_ids`` and ``attention_mask`` (and what else has one column per token); everything else is laid end
    to end."""
    length = max(sample["input_ids"].shape[1] for sample in samples)
    out: Sample = {}
    for name in {name: None for sample in samples for name in sample}:
        having = [sample for sample in samples if name in sample]
        values = [sample[name] for sample in having]
        if all(sample[name].shape == sample["input_ids"].shape for sample in having):
            fill = PAD if name == "input_ids" else 0
            values = [nn.functional.pad(value, (length - value.shape[1], 0), value=fill) for value in values]
        out[name] = torch.cat(values)
    mask = [nn.functional.pad(torch.ones_like(sample["input_ids"]), (length - sample["input_ids"].shape[1], 0))
            for sample in samples]  # fmt: skip
    return {**out, "attention_mask": torch.cat(mask)}


def spread(parts: Sequence[Sequence[int]], *, seed: int, vocabulary: int = 190) -> Tensor:
    """Ids ``[1, l]`` of a prompt with ``parts`` (the tokens of each image) between pieces of random text."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    for i in range(len(parts) + 1):
        text = 3 + (seed + i) % 4 + (3 if i == len(parts) else 0)
        ids += torch.randint(3, vocabulary, (text,), generator=generator).tolist()
        ids += parts[i] if i < len(parts) else []
    return torch.tensor(ids)[None]


@torch.no_grad()
def roughen(model: nn.Module, sharp: float = 2.0, seed: int = 0) -> Any:
    """Random weights of a size at which attention is far from uniform; norms stay."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            scale = sharp if "q_proj" in name or "k_proj" in name else 1.0
            fan = parameter[0].numel() if parameter.dim() == 4 else parameter.shape[-1]
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan**-0.5 * scale)
    return model.eval()
