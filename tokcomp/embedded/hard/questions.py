"""Question kinds about hard scenes.

A kind is a function of a scene's `Facts` and a source of chance; it returns a question with its one right answer, or None
where the scene does not allow it. `EASY_KINDS` are one lookup each and serve training only.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from tokcomp.embedded.hard.scenes import CELLS, SIDE
from tokcomp.embedded.hard.vocabulary import COLOUR_NAMES, COLUMNS, NUMBERS, ROWS
from tokcomp.embedded.questions import Question


class Facts(NamedTuple):
    """Digit and colour of every cell in reading order, -1 in empty cells."""

    digit: list[int]
    colour: list[int]

    @property
    def cells(self) -> list[int]:
        """The cells that hold a digit, in reading order."""
        return [cell for cell in range(CELLS) if self.digit[cell] >= 0]

    def single_colours(self) -> list[int]:
        """Cells whose colour occurs once."""
        return [cell for cell in self.cells if self.colour.count(self.colour[cell]) == 1]

    def single_digits(self) -> list[int]:
        """Cells whose digit occurs once."""
        return [cell for cell in self.cells if self.digit.count(self.digit[cell]) == 1]

    def colour_name(self, cell: int) -> str:
        return COLOUR_NAMES[self.colour[cell]]

    def words(self, cell: int) -> str:
        """Colour and digit."""
        return f"{self.colour_name(cell)} {self.digit[cell]}"


Kind = Callable[[Facts, random.Random], Question | None]

KINDS: dict[str, Kind] = {}
"""The kinds of the benchmark, by name."""
EASY_KINDS: dict[str, Kind] = {}
"""One-lookup kinds, with which training begins."""


def _kind(function: Kind) -> Kind:
    KINDS[function.__name__] = function
    return function


def _easy(function: Kind) -> Kind:
    EASY_KINDS[function.__name__] = function
    return function


@_easy
def digit_of_colour(facts: Facts, rng: random.Random) -> Question | None:
    cells = facts.single_colours()
    if not cells:
        return None
    cell = rng.choice(cells)
    return Question(f"which digit is {facts.colour_name(cell)} ?", str(facts.digit[cell]))


@_easy
def colour_of_digit(facts: Facts, rng: random.Random) -> Question | None:
    cells = facts.single_digits()
    if not cells:
        return None
    cell = rng.choice(cells)
    return Question(f"what colour is the {facts.digit[cell]} ?", facts.colour_name(cell))


@_easy
def what_is_at(facts: Facts, rng: random.Random) -> Question:
    cell = rng.choice(facts.cells)
    return Question(f"what is in the {ROWS[cell // SIDE]} {COLUMNS[cell % SIDE]} ?", facts.words(cell))


_STEPS = {"right of": (0, -1), "left of": (0, 1), "below": (-1, 0), "above": (1, 0)}
"""From the cell that is asked for to the cell that is named: rows, columns."""


def _neighbours(facts: Facts, named: list[int]) -> list[tuple[int, str, int]]:
    """All (asked, where, named) with both cells taken."""
    found = []
    for asked in facts.cells:
        row, column = divmod(asked, SIDE)
        for where, (down, across) in _STEPS.items():
            other_row, other_column = row + down, column + across
            other = other_row * SIDE + other_column
            if 0 <= other_row < SIDE and 0 <= other_column < SIDE and other in named:
                found.append((asked, where, other))
    return found


@_kind
def neighbour_digit(facts: Facts, rng: random.Random) -> Question | None:
    """The digit next to the one of a colour."""
    pairs = _neighbours(facts, facts.single_colours())
    if not pairs:
        return None
    asked, where, named = rng.choice(pairs)
    return Question(f"which digit is {where} the {facts.colour_name(named)} one ?", str(facts.digit[asked]))


@_kind
def neighbour_colour(facts: Facts, rng: random.Random) -> Question | None:
    """The colour of what stands next to a digit."""
    pairs = _neighbours(facts, facts.single_digits())
    if not pairs:
        return None
    asked, where, named = rng.choice(pairs)
    return Question(f"what colour is the digit {where} the {facts.digit[named]} ?", facts.colour_name(asked))


@_kind
def twin(facts: Facts, rng: random.Random) -> Question | None:
    """The one other digit that has the colour of a digit."""
    pairs = []
    for cell in facts.single_digits():
        others = [o for o in facts.cells if o != cell and facts.colour[o] == facts.colour[cell]]
        if len(others) == 1:
            pairs.append((cell, others[0]))
    if not pairs:
        return None
    cell, other = rng.choice(pairs)
    return Question(f"which other digit has the colour of the {facts.digit[cell]} ?", str(facts.digit[other]))


@_kind
def extreme_colour(facts: Facts, rng: random.Random) -> Question | None:
    """The colour of the largest or smallest digit."""
    word, best = rng.choice((("largest", max), ("smallest", min)))
    value = best(facts.digit[cell] for cell in facts.cells)
    if facts.digit.count(value) > 1:
        return None
    return Question(f"what colour is the {word} digit ?", facts.colour_name(facts.digit.index(value)))


def _two(facts: Facts, rng: random.Random) -> tuple[int, int] | None:
    cells = facts.single_colours()
    if len(cells) < 2:
        return None
    first, second = rng.sample(cells, 2)
    return first, second


@_kind
def compare(facts: Facts, rng: random.Random) -> Question | None:
    """The larger of two, with its colour."""
    two = _two(facts, rng)
    if two is None or facts.digit[two[0]] == facts.digit[two[1]]:
        return None
    first, second = two
    larger = max(two, key=lambda cell: facts.digit[cell])
    return Question(
        f"which is larger the {facts.colour_name(first)} one or the {facts.colour_name(second)} one ?",
        facts.words(larger),
    )


@_kind
def sum_of_two(facts: Facts, rng: random.Random) -> Question | None:
    """The sum of two digits named by their colours."""
    two = _two(facts, rng)
    if two is None:
        return None
    names = [facts.colour_name(cell) for cell in two]
    total = facts.digit[two[0]] + facts.digit[two[1]]
    return Question(f"what is the sum of the {names[0]} one and the {names[1]} one ?", NUMBERS[total])


@_kind
def row_sum(facts: Facts, rng: random.Random) -> Question | None:
    """The sum of a row that holds two digits."""
    rows = [row for row in range(SIDE) if len(_line(facts, row, across=True)) == 2]
    if not rows:
        return None
    row = rng.choice(rows)
    total = sum(facts.digit[cell] for cell in _line(facts, row, across=True))
    return Question(f"what is the sum of the {ROWS[row]} row ?", NUMBERS[total])


@_kind
def count_larger(facts: Facts, rng: random.Random) -> Question | None:
    """The digits larger than a named one in reading order, then their number."""
    cells = facts.single_colours()
    if not cells:
        return None
    cell = rng.choice(cells)
    larger = [facts.digit[o] for o in facts.cells if facts.digit[o] > facts.digit[cell]]
    answer = " ".join([*map(str, larger), NUMBERS[len(larger)]])
    return Question(f"how many digits are larger than the {facts.colour_name(cell)} one ?", answer)


def _line(facts: Facts, index: int, *, across: bool) -> list[int]:
    """Taken cells of a row (``across``) or column."""
    line = range(index * SIDE, index * SIDE + SIDE) if across else range(index, CELLS, SIDE)
    return [cell for cell in line if facts.digit[cell] >= 0]


def _describe(facts: Facts, index: int, *, across: bool) -> str:
    name = (ROWS if across else COLUMNS)[index]
    return " ".join([name, *(facts.words(cell) for cell in _line(facts, index, across=across))])


def _all_lines(facts: Facts, *, across: bool) -> str:
    return " ".join(_describe(facts, index, across=across) for index in range(SIDE))


@_kind
def describe_rows(facts: Facts, rng: random.Random) -> Question | None:
    """Every row's name and what stands in it, in reading order."""
    return Question("describe the rows", _all_lines(facts, across=True)) if len(facts.cells) > 4 else None


@_kind
def describe_columns(facts: Facts, rng: random.Random) -> Question | None:
    """The same by columns, from the left and from the top."""
    return Question("describe the columns", _all_lines(facts, across=False)) if len(facts.cells) > 4 else None


@_kind
def running_count(facts: Facts, rng: random.Random) -> Question | None:
    """One, two, three...: every digit in reading order with its number."""
    if len(facts.cells) < 4:
        return None
    words = [f"{NUMBERS[place]} {facts.words(cell)}" for place, cell in enumerate(facts.cells, start=1)]
    return Question("count the digits", " ".join(words))


@_kind
def describe_region(facts: Facts, rng: random.Random) -> Question | None:
    """All rows, then a second paragraph about one column."""
    column = rng.randrange(SIDE)
    if len(facts.cells) < 4 or not _line(facts, column, across=False):
        return None
    text = f"describe the rows then the {COLUMNS[column]} column"
    return Question(text, f"{_all_lines(facts, across=True)} {_describe(facts, column, across=False)}")


LONG_KINDS = ("describe_rows", "describe_columns", "running_count", "describe_region")
"""Kinds whose answers take 12 to 30 tokens."""

ALL_KINDS: dict[str, Kind] = {**KINDS, **EASY_KINDS}
