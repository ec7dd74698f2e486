"""Question kinds about a scene, each with its one right answer.

A kind is a function of a scene and a generator, registered under its name by `kind`; it returns
None for scenes it cannot ask about, such as "what digit is red ?" with two red digits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np

from tokcomp.embedded.photos import PHOTOS
from tokcomp.embedded.scenes import COLOUR_NAMES, Scene, SceneObject

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
_Item = TypeVar("_Item")


class Question(NamedTuple):
    """A question and its answer, words separated by single spaces."""

    text: str
    answer: str


Kind = Callable[[Scene, np.random.Generator], Question | None]

KINDS: dict[str, Kind] = {}
"""All kinds by name; the order is that of registration."""


def kind(function: Kind) -> Kind:
    """Register a kind under its function's name."""
    name = function.__name__
    if name in KINDS:
        raise ValueError(f"question kind {name!r} is already registered")
    KINDS[name] = function
    return function


def ask(name: str, scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask one question of kind ``name``, or None where the scene does not allow it."""
    if name not in KINDS:
        raise ValueError(f"unknown question kind {name!r}; known are {', '.join(KINDS)}")
    return KINDS[name](scene, rng)


def _pick(items: list[_Item], rng: np.random.Generator) -> _Item:
    return items[int(rng.integers(len(items)))]


def _colour(item: SceneObject) -> str:
    return COLOUR_NAMES[item.colour]


@kind
def digit_of_colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Name the digit painted in a colour that occurs once."""
    colours = [o.colour for o in scene.objects]
    single = [o for o in scene.objects if colours.count(o.colour) == 1]
    if not single:
        return None
    item = _pick(single, rng)
    return Question(f"what digit is {_colour(item)} ?", str(item.digit))


@kind
def colour_of_digit(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Name the colour of a digit that occurs once."""
    digits = [o.digit for o in scene.objects]
    single = [o for o in scene.objects if digits.count(o.digit) == 1]
    if not single:
        return None
    item = _pick(single, rng)
    return Question(f"what colour is the {item.digit} ?", _colour(item))


@kind
def count(scene: Scene, rng: np.random.Generator) -> Question:
    """Count the digits."""
    return Question("how many digits ?", _NUMBERS[len(scene.objects)])


@kind
def exists_digit(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask for a digit that is there or not, half the time each."""
    present = {o.digit for o in scene.objects}
    there = rng.random() < 0.5
    digit = _pick([d for d in range(10) if (d in present) == there], rng)
    return Question(f"is there a {digit} ?", "yes" if there else "no")


@kind
def exists_colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask for a digit of a colour that is there or not, half the time each."""
    present = {o.colour for o in scene.objects}
    there = rng.random() < 0.5
    candidates = [c for c in range(len(COLOUR_NAMES)) if (c in present) == there]
    if not candidates:
        return None
    return Question(f"is there a {COLOUR_NAMES[_pick(candidates, rng)]} digit ?", "yes" if there else "no")


@kind
def extreme(scene: Scene, rng: np.random.Generator) -> Question:
    """Name the digit furthest left, right, up or down."""
    word = _pick(["leftmost", "rightmost", "topmost", "lowest"], rng)
    rank = {"leftmost": 0, "rightmost": -1, "topmost": 0, "lowest": -1}[word]
    across = word in ("leftmost", "rightmost")
    order = sorted(scene.objects, key=lambda o: o.rank_x if across else o.rank_y)
    return Question(f"which digit is {word} ?", str(order[rank].digit))


@kind
def list_digits(scene: Scene, rng: np.random.Generator) -> Question:
    """All digits in reading order."""
    return Question("list the digits from left to right", " ".join(str(o.digit) for o in scene.objects))


@kind
def list_colours(scene: Scene, rng: np.random.Generator) -> Question:
    """All colours in reading order."""
    return Question("list the colours from left to right", " ".join(_colour(o) for o in scene.objects))


@kind
def describe(scene: Scene, rng: np.random.Generator) -> Question:
    """Colour and digit of every glyph, left to right."""
    return Question("describe all the digits", " ".join(f"{_colour(o)} {o.digit}" for o in scene.objects))


@kind
def photo(scene: Scene, rng: np.random.Generator) -> Question:
    """Name the photo behind the digits; any background patch answers it."""
    return Question("what is in the photo ?", PHOTOS[scene.photo].name)


BACKGROUND_KINDS = ("photo",)
"""Kinds answered by background patches, scored apart from the rest."""
