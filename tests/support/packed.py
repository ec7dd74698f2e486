"""The families with packed towers (Qwen-VL, GLM-4V) as families like the others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from tests.models.families import Family, Sample
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


PACKED = {
    each: Family(each, partial(build, each), partial(images, each), partial(video, each), batch) for each in FAMILIES
}
"""They have a masked reference of their own (``tests/models/test_packed.py``), so the shared list does not hold them."""
