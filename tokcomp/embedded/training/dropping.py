"""Which visual tokens survive in training: by chance, by saliency, or glyphs first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokcomp.embedded.scenes import PATCHES, Scene

GLYPHS_FIRST = (1.0, 0.0)
CHANCE = (0.0, 0.0)
TRAINING_MIX = (0.55, 0.2)
"""Shares of scenes that keep glyphs first and that keep by saliency; the rest keep by chance."""


def draw_kept(
    scenes: list[Scene], rng: np.random.Generator, number: int, mix: tuple[float, float] = TRAINING_MIX
) -> NDArray[np.int64]:
    """Indices (b, number), ascending, of the patches that survive in each scene.

    Args:
        scenes: b scenes.
        rng: source of chance.
        number: patches to keep; all of them from 144 on.
        mix: shares of scenes that keep glyphs first and by saliency.
    """
    if number >= PATCHES:
        return np.tile(np.arange(PATCHES), (len(scenes), 1))
    scores = np.stack([_scores(scene, rng, mix) for scene in scenes])
    return np.sort(np.argpartition(-scores, number, axis=1)[:, :number], axis=1)


def _scores(scene: Scene, rng: np.random.Generator, mix: tuple[float, float]) -> NDArray[np.float64]:
    owner = scene.obj.reshape(-1)
    score, draw = rng.random(PATCHES), rng.random()
    if draw < mix[0]:
        score[owner >= 0] += 1
        for index in range(len(scene.objects)):  # one patch of every glyph before all others
            patches = np.flatnonzero(owner == index)
            if len(patches):
                score[patches[rng.integers(len(patches))]] += 1
    elif draw < mix[0] + mix[1]:
        score += rng.uniform(0.2, 1.2) * (owner >= 0)
    return score
