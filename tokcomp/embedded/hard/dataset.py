"""The benchmark data: one question per scene, balanced over the kinds."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tokcomp.embedded.glyphs import Split
from tokcomp.embedded.hard.questions import ALL_KINDS, KINDS, Facts
from tokcomp.embedded.hard.scenes import Plans, draw_plans, paint
from tokcomp.embedded.questions import Question

_PAINTED = 64  # scenes painted at once
_TRIES = 16  # scenes drawn at once, of which the first that allows the question counts


@dataclass(frozen=True, eq=False)
class HardQuestion:
    """One item of the benchmark.

    Attributes:
        facts: digit and colour of every cell.
        owner: per patch (144,) the cell whose glyph it shows, or -1.
    """

    id: str
    image: Image.Image
    question: str
    answer: str
    kind: str
    facts: Facts
    owner: tuple[int, ...]


def hard_question_set(
    n: int, *, split: Split = "test", seed: int = 0, kinds: Sequence[str] | None = None
) -> list[HardQuestion]:
    """The first ``n`` questions of an endless list.

    Item ``i`` depends on ``(split, seed, i, kinds)`` alone, and kinds take turns: a longer set begins with every shorter
    one, and any set is balanced.

    Args:
        n: number of questions.
        split: "test" scenes share neither glyph nor photo region with "train" scenes.
        seed: another seed is another list.
        kinds: names from `ALL_KINDS`; None: those of `KINDS`.
    """
    if n < 0:
        raise ValueError(f"n must be at least 0, got {n}")
    names = tuple(KINDS) if kinds is None else tuple(kinds)
    unknown = [name for name in names if name not in ALL_KINDS]
    if unknown or not names:
        raise ValueError(f"kinds must name some of {', '.join(ALL_KINDS)}; got {list(names)}")
    items: list[HardQuestion] = []
    for first in range(0, n, _PAINTED):
        indices = range(first, min(n, first + _PAINTED))
        items += _items([(index, names[index % len(names)]) for index in indices], split, seed)
    return items


def _items(wanted: list[tuple[int, str]], split: Split, seed: int) -> list[HardQuestion]:
    """Items of the given numbers and kinds, painted together."""
    # The kind is part of the seed, so that choosing fewer kinds still gives fresh scenes.
    drawn = [
        _asked(np.random.default_rng([seed, zlib.crc32(f"hard/{split}/{kind}".encode()), index]), kind, split)
        for index, kind in wanted
    ]
    plans = Plans.joined([plan for plan, _, _ in drawn])
    pixels, owner = paint(plans.tensors(), split)
    return [
        HardQuestion(
            f"{split}-{seed}-{index:05d}-{kind}", Image.fromarray(image), question.text, question.answer, kind, facts,
            tuple(owners),
        )
        for (index, kind), (_, facts, question), image, owners in zip(
            wanted, drawn, pixels.numpy(), owner.tolist(), strict=True
        )
    ]  # fmt: skip


def _asked(rng: np.random.Generator, kind: str, split: Split) -> tuple[Plans, Facts, Question]:
    """The first drawn scene that allows a question of ``kind``."""
    chance = random.Random(int(rng.integers(2**63)))
    while True:
        plans = draw_plans(rng, split, _TRIES)
        for row in range(_TRIES):
            facts = Facts(plans.digit[row].tolist(), plans.colour[row].tolist())
            question = ALL_KINDS[kind](facts, chance)
            if question is not None:
                return plans.scene(row), facts, question
