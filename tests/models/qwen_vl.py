"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and GLM-4V among the families."""

from __future__ import annotations

from functools import partial
from typing import Any

from tests.models.families import Sample, family
from tests.models.packed_models import FAMILIES, model, prompt

GRIDS = ((1, 8, 12), (1, 4, 8), (1, 12, 4), (1, 6, 6))


def sample(name: str, images: int, seed: int) -> Sample:
    """A prompt with images of several sizes."""
    parts: list[Any] = [3 + seed % 4]
    for i in range(images):
        parts += [("image", GRIDS[(seed + i) % len(GRIDS)]), 3 + (seed + i + 1) % 4]
    return prompt(*parts, 4, family=name, seed=seed)


def video(name: str, seed: int) -> Sample:
    """A prompt with a video."""
    return prompt(3, ("video", (3, 4 + 4 * (seed % 2), 8)), 6, family=name, seed=seed)


def build(name: str, attention: str) -> Any:
    return model(name, attention=attention)


for _name in FAMILIES:
    family(_name, partial(sample, _name), video=partial(video, _name))(partial(build, _name))
