"""The words of the embedded model and their ids."""

from __future__ import annotations

from tokcomp.embedded.photos import PHOTOS
from tokcomp.embedded.scenes import COLOUR_NAMES as _COLOUR_NAMES

PAD, BOS, EOS, UNKNOWN, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"

DIGITS = tuple(str(digit) for digit in range(10))
PHOTO_NAMES = tuple(photo.name for photo in PHOTOS)
COLOUR_NAMES = _COLOUR_NAMES
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
COLUMN_RANKS = ("first", "second", "third", "fourth", "fifth")
# Rows have no words in any question; the model still needs a token per row rank to think with.
ROW_RANKS = ("row1", "row2", "row3", "row4", "row5")
LAYERS = ("photo", "digit")
"""What a patch shows: background or a glyph."""

# fmt: off
_QUESTION_WORDS = (
    "what", "which", "how", "is", "there", "a", "the", "in", "of", "many", "digits", "colour", "list", "colours",
    "from", "left", "to", "right", "describe", "all", "leftmost", "rightmost", "topmost", "lowest", "yes", "no",
    "user", "assistant", ":", "?",
)
# fmt: on

WORDS: tuple[str, ...] = (
    PAD, BOS, EOS, UNKNOWN, IMAGE,
    *DIGITS, *COLOUR_NAMES, *PHOTO_NAMES, *NUMBERS, *COLUMN_RANKS, *ROW_RANKS, *LAYERS,
    *_QUESTION_WORDS,
)  # fmt: skip
WORD_IDS: dict[str, int] = {word: index for index, word in enumerate(WORDS)}


def ids(words: tuple[str, ...] | list[str]) -> list[int]:
    """Ids of words that must all be known."""
    return [WORD_IDS[word] for word in words]


def split_words(text: str) -> list[str]:
    """Lower-case words of ``text``, with colons and question marks standing alone."""
    return text.lower().replace("?", " ? ").replace(":", " : ").split()


def encode(text: str) -> list[int]:
    """Ids of the words of ``text``; an unknown word is a KeyError, since all texts are our own."""
    return ids(split_words(text))
