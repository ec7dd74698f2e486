"""The benchmark data: one question per scene, balanced over the kinds."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tokcomp.embedded.glyphs import Split
from tokcomp.embedded.questions import KINDS, ask
from tokcomp.embedded.scenes import SCENES, Scene, SceneRules, draw_scene, render


@dataclass(frozen=True, eq=False)
class SceneQuestion:
    """One item of the benchmark; ``scene`` holds every fact about the image."""

    id: str
    image: Image.Image
    question: str
    answer: str
    kind: str
    scene: Scene


def question_set(
    n: int,
    *,
    split: Split = "test",
    seed: int = 0,
    kinds: Sequence[str] | None = None,
    rules: SceneRules = SCENES,
) -> list[SceneQuestion]:
    """The first ``n`` questions of an endless list.

    Item ``i`` depends on ``(split, seed, i, kinds, rules)`` alone, and kinds take turns: a longer
    set begins with every shorter one, and any set is balanced.

    Args:
        n: number of questions.
        split: "test" scenes share neither glyph nor photo region with "train" scenes.
        seed: another seed is another list.
        kinds: names from `KINDS`, all of them by default.
        rules: the distribution of the scenes.
    """
    if n < 0:
        raise ValueError(f"n must be at least 0, got {n}")
    names = tuple(KINDS) if kinds is None else tuple(kinds)
    unknown = [name for name in names if name not in KINDS]
    if unknown or not names:
        raise ValueError(f"kinds must name some of {', '.join(KINDS)}; got {list(names)}")
    return [_item(index, names[index % len(names)], split, seed, rules) for index in range(n)]


def _item(index: int, kind: str, split: Split, seed: int, rules: SceneRules) -> SceneQuestion:
    # The kind is part of the seed, so that choosing fewer kinds still gives fresh scenes.
    rng = np.random.default_rng([seed, zlib.crc32(f"{split}/{kind}".encode()), index])
    while True:
        scene = draw_scene(rng, split, rules)
        question = ask(kind, scene, rng)
        if question is not None:
            break
    name = f"{split}-{seed}-{index:05d}-{kind}"
    return SceneQuestion(name, Image.fromarray(render(scene)), question.text, question.answer, kind, scene)


def prompt(question: str) -> str:
    """The text to hand to the processor along with the image."""
    return f"USER: <image> {question} ASSISTANT:"
