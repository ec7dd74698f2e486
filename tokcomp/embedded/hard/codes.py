"""The alphabets of the hard scenes' model: word embeddings, visual codes, and what lies between them.

The last 35 dimensions of the language model's width are reserved for what the tower says of a patch, one trait each; the
first 157 hold words. As no word has a component in a reserved dimension and the projector writes to no other, a layer
whose weights are zero on a group of reserved columns cannot read that trait of any patch: that is how lookups are made to
happen where `architecture` wants them.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from tokcomp.embedded.hard import vocabulary as v
from tokcomp.embedded.hard.scenes import CELLS, SIDE

WIDTH = 192
TRAITS = {"colour": len(v.COLOUR_NAMES), "cell": CELLS, "row": SIDE, "column": SIDE, "layer": 2, "digit": 10}
"""Reserved dimensions of each trait, in their order; ``layer`` tells background (0) from glyph (1)."""

N_CODES = sum(TRAITS.values())
FIRST_CODE = WIDTH - N_CODES


def _spans() -> dict[str, slice]:
    spans, start = {}, FIRST_CODE
    for name, size in TRAITS.items():
        spans[name] = slice(start, start + size)
        start += size
    return spans


SPANS = _spans()
"""Dimensions of each trait."""


@lru_cache(maxsize=1)
def _rows() -> Tensor:
    generator = torch.Generator().manual_seed(7)
    rows, _ = torch.linalg.qr(torch.randn(FIRST_CODE, FIRST_CODE, generator=generator))
    return torch.cat([rows, torch.zeros(FIRST_CODE, N_CODES)], 1)


def word_embeddings() -> Tensor:
    """Unit-norm, mutually orthogonal embeddings (words, 192), zero in the reserved dimensions."""
    return _rows()[: len(v.WORDS)].clone()


def meanings() -> Tensor:
    """Per code the direction that stands for it among words (35, 192): the word itself where there is one."""
    words = word_embeddings()
    spare = iter(_rows()[len(v.WORDS) :])
    named = {"colour": v.COLOUR_NAMES, "row": v.ROWS, "column": v.COLUMNS, "digit": v.DIGITS}
    parts = [
        words[v.ids(named[trait])] if trait in named else torch.stack([next(spare) for _ in range(size)])
        for trait, size in TRAITS.items()
    ]
    return torch.cat(parts)
