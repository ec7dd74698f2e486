"""Every answer is recomputed from boxes, digits and colours by other means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokcomp.embedded.photos import PHOTOS
from tokcomp.embedded.questions import KINDS, ask, kind
from tokcomp.embedded.scenes import COLOUR_NAMES, Scene, draw_scene
from tokcomp.embedded.vocabulary import encode

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight"]


def recompute(scene: Scene, text: str) -> str:
    """The answer to ``text``, from the words of the question and the boxes alone."""
    facts = [
        ((o.box[0] + o.box[2]) / 2, (o.box[1] + o.box[3]) / 2, str(o.digit), COLOUR_NAMES[o.colour])
        for o in scene.objects
    ]
    by_x, by_y = sorted(facts), sorted(facts, key=lambda fact: fact[1])
    words = text.split()
    match words:
        case ["what", "digit", "is", colour, "?"]:
            (answer,) = [digit for _, _, digit, painted in facts if painted == colour]
        case ["what", "colour", "is", "the", shown, "?"]:
            (answer,) = [colour for _, _, digit, colour in facts if digit == shown]
        case ["how", "many", *_]:
            answer = NUMBERS[len(facts)]
        case ["is", "there", "a", colour, "digit", "?"]:
            answer = "yes" if any(fact[3] == colour for fact in facts) else "no"
        case ["is", "there", "a", shown, "?"]:
            answer = "yes" if any(fact[2] == shown for fact in facts) else "no"
        case ["which", "digit", "is", word, "?"]:
            ends = {"leftmost": by_x[0], "rightmost": by_x[-1], "topmost": by_y[0], "lowest": by_y[-1]}
            answer = ends[word][2]
        case ["list", "the", "digits", *_]:
            answer = " ".join(fact[2] for fact in by_x)
        case ["list", "the", "colours", *_]:
            answer = " ".join(fact[3] for fact in by_x)
        case ["describe", *_]:
            answer = " ".join(f"{fact[3]} {fact[2]}" for fact in by_x)
        case _:
            assert words == ["what", "is", "in", "the", "photo", "?"]
            answer = PHOTOS[scene.background.photo].name
    return answer


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(sorted(KINDS)))
def test_answers_are_right(seed: int, name: str) -> None:
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng, "test")
    for _ in range(4):
        question = ask(name, scene, rng)
        if question is not None:
            assert question.answer == recompute(scene, question.text)
            assert encode(question.text)
            assert encode(question.answer)


def test_yes_and_no_are_balanced() -> None:
    rng = np.random.default_rng(0)
    for name in ("exists_digit", "exists_colour"):
        answers = [ask(name, draw_scene(rng, "test"), rng) for _ in range(300)]
        share = np.mean([answer is not None and answer.answer == "yes" for answer in answers])
        assert 0.4 < share < 0.6


def test_unknown_kind_names_the_known_ones() -> None:
    scene = draw_scene(np.random.default_rng(0), "test")
    with pytest.raises(ValueError, match=r"'colour'.*digit_of_colour"):
        ask("colour", scene, np.random.default_rng(0))


def test_a_kind_cannot_be_registered_twice() -> None:
    with pytest.raises(ValueError, match="'photo' is already registered"):
        kind(KINDS["photo"])
