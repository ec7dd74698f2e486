"""The two alphabets of the embedded model: word embeddings and visual codes.

Both are rows of one random orthogonal matrix, so no word resembles another word or any code. The
tower describes a patch by the sum of its codes; the language model's attention learns to match a
word with the code of the same meaning. Orthogonality matters: were a word's code the word itself,
a word would match itself best and never look at the patches.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from tokcomp.embedded import vocabulary as v

WIDTH = 128
"""Width of both the tower and the language model."""

CODED_WORDS = v.ids([*v.DIGITS, *v.COLOUR_NAMES, *v.COLUMN_RANKS, *v.ROW_RANKS, *v.PHOTO_NAMES, *v.LAYERS])
"""Ids of the words that name something visible."""

if len(v.WORDS) + len(CODED_WORDS) > WIDTH:
    raise ValueError(f"{len(v.WORDS)} words and {len(CODED_WORDS)} codes need more than {WIDTH} dimensions")


@lru_cache(maxsize=1)
def _rows() -> Tensor:
    generator = torch.Generator().manual_seed(7)
    rows, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))
    return rows


def word_embeddings() -> Tensor:
    """Unit-norm, mutually orthogonal embeddings ``(words, 128)``."""
    return _rows()[: len(v.WORDS)].clone()


def visual_codes() -> Tensor:
    """Per word id its visual code ``(words, 128)``; zero for words that name nothing visible."""
    codes = torch.zeros(len(v.WORDS), WIDTH)
    codes[CODED_WORDS] = _rows()[len(v.WORDS) : len(v.WORDS) + len(CODED_WORDS)]
    return codes


def word_to_code() -> Tensor:
    """The map ``(128, 128)`` that takes a word embedding to its visual code."""
    return visual_codes()[CODED_WORDS].T @ word_embeddings()[CODED_WORDS]
