"""The families with packed towers (Qwen-VL, GLM-4V) as families like the others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from tests.models.families import Sample, family
from tests.models.packed_models import FAMILIES, model, prompt, together

_GRIDS = [(1, 6, 4), (1, 4, 8), (1, 8, 6)]


def images(name: str, number: int, seed: int) -> Sample:
    parts: list[Any] = [3 + seed % 3]
    for i in range(number):
        parts += [("image", _GRIDS[(seed + i) % len(_GRIDS)]), 3 + (seed + i) % 4]
    return prompt(*parts, family=name, seed=seed)


def video(name: str, seed: int) -> Sample:
    return prompt(4, ("video", (2, 4, 6)), 6, family=name, seed=seed)


def batch(samples: Sequence[Sample]) -> Sample:
    return together(*samples)


def build(name: str, attention: str) -> Any:
    return model(name, attention=attention, layers=5)


for each in FAMILIES:
    family(each, partial(images, each), video=partial(video, each), batch=batch)(partial(build, each))
