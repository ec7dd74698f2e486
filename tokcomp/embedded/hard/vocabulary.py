"""The words of the hard scenes' model and their ids."""

from __future__ import annotations

from collections.abc import Iterable

from tokcomp.embedded.scenes import COLOUR_NAMES
from tokcomp.embedded.vocabulary import BOS, DIGITS, EOS, IMAGE, PAD, UNKNOWN

__all__ = ["BOS", "COLOUR_NAMES", "COLUMNS", "DIGITS", "EOS", "IMAGE", "NUMBERS", "PAD", "ROWS", "UNKNOWN"]

NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
)  # fmt: skip
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")

# fmt: off
_QUESTION_WORDS = (
    "what", "which", "how", "many", "is", "are", "the", "in", "of", "or", "and", "then", "than", "has", "other", "one",
    "digit", "digits", "colour", "above", "below", "larger", "largest", "smallest", "sum", "row", "rows", "column",
    "columns", "count", "describe", "none", "user", "assistant", ":", "?",
)
# fmt: on

# "one" is a number and a pronoun; each word stands once.
WORDS: tuple[str, ...] = tuple(
    dict.fromkeys((PAD, BOS, EOS, UNKNOWN, IMAGE, *DIGITS, *COLOUR_NAMES, *NUMBERS, *ROWS, *COLUMNS, *_QUESTION_WORDS))
)
WORD_IDS: dict[str, int] = {word: index for index, word in enumerate(WORDS)}


def ids(words: Iterable[str]) -> list[int]:
    """Ids of words that must all be known."""
    return [WORD_IDS[word] for word in words]
