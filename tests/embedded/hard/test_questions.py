"""Answers to hard questions, against scenes written out by hand and against a second way of finding them."""

from __future__ import annotations

import random

import pytest

from tokcomp.embedded.hard.dataset import hard_question_set
from tokcomp.embedded.hard.questions import ALL_KINDS, KINDS, LONG_KINDS, Facts
from tokcomp.embedded.hard.vocabulary import COLOUR_NAMES, WORD_IDS

# red 3    .      blue 7
# green 7  red 0  .
# .        .      white 5
_RED, _GREEN, _BLUE, _WHITE = (COLOUR_NAMES.index(name) for name in ("red", "green", "blue", "white"))
SCENE = Facts([3, -1, 7, 7, 0, -1, -1, -1, 5], [_RED, -1, _BLUE, _GREEN, _RED, -1, -1, -1, _WHITE])


def asked(kind: str, scene: Facts = SCENE, times: int = 200) -> dict[str, str]:
    """Every question that a kind asks about a scene, with its answer."""
    rng = random.Random(0)
    questions = [ALL_KINDS[kind](scene, rng) for _ in range(times)]
    return {question.text: question.answer for question in questions if question is not None}


def test_lookups_of_two_hops() -> None:
    assert asked("neighbour_digit") == {
        "which digit is above the green one ?": "3",
        "which digit is right of the green one ?": "0",
    }
    assert asked("neighbour_colour") == {
        "what colour is the digit below the 3 ?": "green",
        "what colour is the digit left of the 0 ?": "green",
    }
    assert asked("twin") == {
        "which other digit has the colour of the 3 ?": "0",
        "which other digit has the colour of the 0 ?": "3",
    }


def test_comparisons_and_sums() -> None:
    assert asked("extreme_colour") == {"what colour is the smallest digit ?": "red"}
    compared = asked("compare")
    assert compared["which is larger the white one or the blue one ?"] == "blue 7"
    assert not any("red" in text or ("blue" in text and "green" in text) for text in compared)
    assert asked("sum_of_two")["what is the sum of the blue one and the green one ?"] == "fourteen"
    assert asked("row_sum") == {
        "what is the sum of the top row ?": "ten",
        "what is the sum of the middle row ?": "seven",
    }
    assert asked("count_larger") == {
        "how many digits are larger than the blue one ?": "zero",
        "how many digits are larger than the green one ?": "zero",
        "how many digits are larger than the white one ?": "7 7 two",
    }


def test_long_answers() -> None:
    rows = "top red 3 blue 7 middle green 7 red 0 bottom white 5"
    assert asked("describe_rows") == {"describe the rows": rows}
    assert asked("describe_columns") == {"describe the columns": "left red 3 green 7 centre red 0 right blue 7 white 5"}
    assert asked("running_count") == {"count the digits": "one red 3 two blue 7 three green 7 four red 0 five white 5"}
    assert asked("describe_region")["describe the rows then the right column"] == f"{rows} right blue 7 white 5"


def test_one_lookup() -> None:
    assert set(asked("digit_of_colour").items()) == {
        ("which digit is blue ?", "7"),
        ("which digit is green ?", "7"),
        ("which digit is white ?", "5"),
    }
    assert asked("colour_of_digit")["what colour is the 5 ?"] == "white"
    assert asked("what_is_at")["what is in the top right ?"] == "blue 7"


@pytest.mark.parametrize(
    "kind", ["neighbour_digit", "neighbour_colour", "twin", "compare", "sum_of_two", "count_larger"]
)
def test_a_scene_of_twins_allows_no_reference(kind: str) -> None:
    twins = Facts([4, 4, 4, 4, -1, -1, -1, -1, -1], [_RED, _RED, _RED, _RED, -1, -1, -1, -1, -1])
    assert asked(kind, twins) == {}


def test_long_answers_take_12_to_30_tokens_and_all_words_are_known() -> None:
    items = hard_question_set(48, seed=1)
    for item in items:
        words = item.question.split() + item.answer.split()
        assert set(words) <= set(WORD_IDS)
        if item.kind in LONG_KINDS:
            assert 12 <= len(item.answer.split()) + 1 <= 30
    assert {item.kind for item in items} == set(KINDS)
