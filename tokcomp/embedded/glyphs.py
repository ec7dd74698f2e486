"""Handwritten digits from scikit-learn, split by writer sample into train and test."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokcomp.embedded.sources import digits

Split = Literal["train", "test"]

WARPS = 6
"""Number of fixed affine variants of every training glyph."""

_TRAIN_SHARE = 0.8
_CANVAS = 48  # glyphs are enlarged from 8x8 to this side before warping


def digit_images() -> NDArray[np.float32]:
    """Every bundled digit as written: pixels ``(n, 8, 8)`` in [0, 1]."""
    return _digits()[0]


@lru_cache(maxsize=1)
def _digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All bundled digits: pixels ``(n, 8, 8)`` in [0, 1] and labels ``(n,)``."""
    images, labels = digits()
    return (images / 16).astype(np.float32), labels.astype(np.int64)


@lru_cache(maxsize=2)
def glyph_pool(split: Split) -> tuple[tuple[int, ...], ...]:
    """Glyph indices usable in ``split``, one tuple per digit 0-9; the two splits are disjoint."""
    _, labels = _digits()
    order = np.random.default_rng(0).permutation(len(labels))
    cut = int(_TRAIN_SHARE * len(order))
    chosen = order[:cut] if split == "train" else order[cut:]
    return tuple(tuple(int(i) for i in chosen if labels[i] == digit) for digit in range(10))


def _warp(image: Image.Image, index: int, warp: int) -> Image.Image:
    """A small rotation, scale and shear that depends on ``(index, warp)`` alone."""
    rng = np.random.default_rng([index, warp])
    angle, shear = rng.uniform(-0.2, 0.2, 2)
    scale_x, scale_y = rng.uniform(0.85, 1.12, 2)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotation @ np.array([[1 / scale_x, shear], [0, 1 / scale_y]])
    centre = np.full(2, (_CANVAS - 1) / 2)
    shift = centre - matrix @ centre
    coefficients = (*matrix[0], shift[0], *matrix[1], shift[1])
    return image.transform(
        image.size, Image.Transform.AFFINE, tuple(map(float, coefficients)), Image.Resampling.BICUBIC
    )


@cache
def glyph_mask(index: int, height: int, warp: int = -1) -> NDArray[np.float32]:
    """Opacity ``(height, width)`` in [0, 1] of one glyph, cropped to its ink.

    Args:
        index: which of the bundled digits.
        height: pixels; the width follows the ink, between 5 and ``height + 2``.
        warp: affine variant in ``range(WARPS)``, or -1 for the glyph as written.
    """
    pixels, _ = _digits()
    image = Image.fromarray((pixels[index] * 255).astype(np.uint8))
    image = image.resize((_CANVAS, _CANVAS), Image.Resampling.BICUBIC)
    if warp >= 0:
        image = _warp(image, index, warp)
    rows, columns = np.where(np.asarray(image) > 64)
    ink = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    image = image.crop(ink)
    width = max(5, min(height + 2, round(image.width * height / image.height)))
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    # Brightened so that thin strokes reach full opacity.
    mask = np.clip(np.asarray(image, np.float32) / 255 * 1.3, 0, 1).astype(np.float32)
    mask.flags.writeable = False
    return mask
