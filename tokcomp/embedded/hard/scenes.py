"""Scenes of three to eight coloured digits in a grid of three by three cells, drawn and painted in batches.

A plan says what stands where (`draw_plans`, NumPy, a function of the generator alone); `paint` turns plans into pixels on
any device. Unlike the scenes of the first model, digits and colours repeat freely, and every glyph of the training split
is bent anew each time it is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tokcomp.embedded.glyphs import Split, digit_images, glyph_pool
from tokcomp.embedded.photos import PHOTOS, photo_region
from tokcomp.embedded.scenes import COLOURS, GRID, IMAGE_SIZE, PATCH_SIZE

SIDE = 3
CELLS = SIDE * SIDE
CELL_PIXELS = IMAGE_SIZE // SIDE
_CELL_PATCHES = CELL_PIXELS // PATCH_SIZE
COUNTS = (3, 4, 5, 6, 7, 8)
_COUNT_SHARES = (0.08, 0.12, 0.2, 0.22, 0.2, 0.18)
_HEIGHTS = (16, 18, 20)
_SHIFT = 4  # pixels by which a glyph may leave its cell's centre
_BRIGHTNESS = (0.2, 0.6)
_PHOTO_SIZES = (0, 3)
_CANVAS = 48
_INK = 0.3  # opacity from which a pixel counts as ink
_COVER = 0.1  # share of a patch that ink must cover for the patch to show the glyph
_PAINTS = np.array(list(COLOURS.values()), np.float32)


class Plans(NamedTuple):
    """A batch of scenes; cells run in reading order.

    ``digit``, ``colour`` and ``glyph`` are (b, 9), -1 in empty cells; ``place`` (b, 9, 3) is height, shift right and shift
    down in pixels; ``warp`` (b, 9, 4) is angle, shear, and scale in x and y; ``paint`` (b, 9, 3) is the colour in pixels.
    ``photo`` (b, 5) is photo, size, top, left, mirrored; ``gain`` (b, 3) dims it.
    """

    digit: NDArray[np.int64]
    colour: NDArray[np.int64]
    glyph: NDArray[np.int64]
    place: NDArray[np.float32]
    warp: NDArray[np.float32]
    paint: NDArray[np.float32]
    photo: NDArray[np.int64]
    gain: NDArray[np.float32]

    def tensors(self) -> tuple[Tensor, ...]:
        """The same as tensors."""
        return tuple(torch.from_numpy(array) for array in self)

    def scene(self, row: int) -> Plans:
        """One scene alone."""
        return Plans._make(array[row : row + 1] for array in self)

    @classmethod
    def joined(cls, parts: Sequence[Plans]) -> Plans:
        """Several batches as one."""
        return cls._make(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


@cache
def _pools(split: Split) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Glyph indices of every digit as a table (10, most), and how many there are (10,)."""
    pools = glyph_pool(split)
    sizes = np.array([len(pool) for pool in pools])
    table = np.zeros((10, sizes.max()), np.int64)
    for digit, pool in enumerate(pools):
        table[digit, : len(pool)] = pool
    return table, sizes


@cache
def _region_sizes(split: Split) -> NDArray[np.int64]:
    """Height and width of every photo region at every size, (8, 2, 2)."""
    shapes = [[photo_region(p, size, split).shape[:2] for size in _PHOTO_SIZES] for p in range(len(PHOTOS))]
    return np.array(shapes)


def _identities(rng: np.random.Generator, occupied: NDArray[np.bool_], kinds: int) -> NDArray[np.int64]:
    """Per cell one of ``kinds`` values, from a few or many of them, so that repeats are common; (b, 9), -1 if empty."""
    rows = len(occupied)
    order = rng.permuted(np.tile(np.arange(kinds), (rows, 1)), axis=1)
    variety = rng.integers(min(5, kinds - 1), kinds + 1, (rows, 1))
    drawn = (rng.random((rows, CELLS)) * variety).astype(np.int64)
    # Half the scenes take values without repetition as far as they go.
    distinct = rng.permuted(np.tile(np.arange(CELLS), (rows, 1)), axis=1) % kinds
    drawn = np.where(rng.random((rows, 1)) < 0.4, distinct, drawn)
    return np.where(occupied, np.take_along_axis(order, drawn, 1), -1)


def draw_plans(rng: np.random.Generator, split: Split, number: int, ease: float = 0.0) -> Plans:
    """``number`` scenes; they depend on the generator's state and the arguments alone.

    Args:
        rng: source of chance.
        split: whose glyphs and photo regions; glyphs of "train" are bent.
        number: b.
        ease: share of scenes with centred glyphs on darker photos, the start of a curriculum.
    """
    count = rng.choice(COUNTS, (number, 1), p=_COUNT_SHARES)
    occupied = rng.permuted(np.tile(np.arange(CELLS), (number, 1)), axis=1) < count
    digit = _identities(rng, occupied, 10)
    colour = _identities(rng, occupied, len(COLOURS))
    table, sizes = _pools(split)
    pick = (rng.random((number, CELLS)) * sizes[digit]).astype(np.int64)
    glyph = np.where(occupied, table[digit, pick], -1)
    easy = rng.random((number, 1)) < ease
    shift = np.where(easy[..., None], 0, rng.uniform(-_SHIFT, _SHIFT, (number, CELLS, 2)))
    place = np.concatenate([rng.choice(_HEIGHTS, (number, CELLS, 1)), shift], 2)
    warp = np.tile(np.array([0, 0, 1, 1], np.float32), (number, CELLS, 1))
    if split == "train":
        warp = np.concatenate(
            [rng.uniform(-0.22, 0.22, (number, CELLS, 2)), rng.uniform(0.85, 1.15, (number, CELLS, 2))], 2
        )
    paint = np.clip(_PAINTS[colour] + rng.uniform(-15, 15, (number, CELLS, 3)), 0, 255)
    photo, gain = _backgrounds(rng, split, easy[:, 0])
    single = [np.asarray(array, np.float32) for array in (place, warp, paint)]
    return Plans(digit, colour, glyph, single[0], single[1], single[2], photo, gain.astype(np.float32))


def _backgrounds(
    rng: np.random.Generator, split: Split, easy: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    number = len(easy)
    which, size = rng.integers(0, len(PHOTOS), number), rng.integers(0, len(_PHOTO_SIZES), number)
    room = _region_sizes(split)[which, size] - IMAGE_SIZE + 1  # (b, 2)
    corner = (rng.random((number, 2)) * room).astype(np.int64)
    mirrored = rng.integers(0, 2, number)
    gain = np.tile(rng.uniform(*_BRIGHTNESS, (number, 1)), (1, 3))
    if split == "train":
        gain = gain * rng.uniform(0.9, 1.1, (number, 3))
    return np.column_stack([which, size, corner, mirrored]), np.where(easy[:, None], gain / 2, gain)


@cache
def _canvases() -> tuple[Tensor, Tensor]:
    """Every digit enlarged (n, 1, 48, 48) in [0, 1], and its ink (n, 4): centre x, centre y, width, height."""
    images = digit_images()
    canvas = np.stack(
        [
            np.asarray(
                Image.fromarray((image * 255).astype(np.uint8)).resize((_CANVAS, _CANVAS), Image.Resampling.BICUBIC)
            )
            for image in images
        ]
    )
    inked: NDArray[np.bool_] = canvas > 64
    across: NDArray[np.bool_] = np.any(inked, axis=1)
    down: NDArray[np.bool_] = np.any(inked, axis=2)
    left, right = across.argmax(1), _CANVAS - across[:, ::-1].argmax(1)
    top, bottom = down.argmax(1), _CANVAS - down[:, ::-1].argmax(1)
    ink = np.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], 1)
    return torch.from_numpy(canvas)[:, None].float() / 255, torch.from_numpy(ink).float()


@cache
def _photo_bank(split: Split) -> Tensor:
    """All regions of a split, padded to one size: (8, 2, h, w, 3) uint8."""
    height, width = _region_sizes(split).reshape(-1, 2).max(0)
    bank = np.zeros((len(PHOTOS), len(_PHOTO_SIZES), height, width, 3), np.uint8)
    for photo in range(len(PHOTOS)):
        for place, size in enumerate(_PHOTO_SIZES):
            region = photo_region(photo, size, split)
            bank[photo, place, : region.shape[0], : region.shape[1]] = region
    return torch.from_numpy(bank)


def warm_up() -> None:
    """Prepare what the processes that draw scenes share, before they part."""
    for split in ("train", "test"):
        _pools(split), _region_sizes(split)
    _canvases()


@cache
def _on(device: torch.device, split: Split) -> tuple[Tensor, Tensor, Tensor]:
    canvas, ink = _canvases()
    return canvas.to(device), ink.to(device), _photo_bank(split).to(device)


def _glyph_masks(glyph: Tensor, place: Tensor, warp: Tensor, canvas: Tensor, ink: Tensor) -> Tensor:
    """Opacity of the glyph in every cell, (b, 9, 32, 32)."""
    present = (glyph >= 0).flatten()
    index = glyph.flatten().clamp(min=0)
    centre, extent = ink[index, :2], ink[index, 2:]
    height, shift = place[..., 0].flatten(), place[..., 1:].flatten(0, 1)
    width = (extent[:, 0] * height / extent[:, 1]).round().clamp(min=5).minimum(height + 2)
    scale = torch.stack([extent[:, 0] / width, extent[:, 1] / height], 1)  # canvas pixels per pixel
    angle, shear, stretch = warp[..., 0].flatten(), warp[..., 1].flatten(), warp[..., 2:].flatten(0, 1)
    cos, sin = angle.cos(), angle.sin()
    # rotation @ [[1 / stretch x, shear], [0, 1 / stretch y]], applied to the distance from the glyph's centre
    matrix = torch.stack(
        [cos / stretch[:, 0], cos * shear - sin / stretch[:, 1], sin / stretch[:, 0], sin * shear + cos / stretch[:, 1]]
        , 1).unflatten(1, (2, 2)) * scale[:, :, None]  # fmt: skip
    axis = torch.arange(CELL_PIXELS, device=glyph.device) + 0.5 - CELL_PIXELS / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    distance = torch.stack([x, y], -1).reshape(1, -1, 2) - shift[:, None]  # (n, 1024, 2)
    source = distance @ matrix.transpose(1, 2) + centre[:, None]
    grid = (source * 2 / _CANVAS - 1).unflatten(1, (CELL_PIXELS, CELL_PIXELS))
    mask = F.grid_sample(canvas[index], grid, align_corners=False)[:, 0]
    return ((mask * 1.3).clamp(0, 1) * present[:, None, None]).unflatten(0, glyph.shape)


def paint(plans: tuple[Tensor, ...], split: Split) -> tuple[Tensor, Tensor]:
    """Pixels (b, 96, 96, 3) uint8 and, per patch (b, 144), the cell whose glyph it shows, or -1.

    Args:
        plans: `Plans.tensors`, on any one device.
        split: the split that they were drawn from.
    """
    _, _, glyph, place, warp, colour, photo, gain = plans
    rows = len(glyph)
    canvas, ink, bank = _on(glyph.device, split)
    mask = _glyph_masks(glyph, place, warp, canvas, ink)
    cells = mask.unflatten(1, (SIDE, SIDE)).transpose(2, 3)  # (b, 3, 32, 3, 32)
    opacity = cells.reshape(rows, IMAGE_SIZE, IMAGE_SIZE, 1)
    paints = colour.unflatten(1, (SIDE, SIDE))[:, :, None, :, None]  # (b, 3, 1, 3, 1, 3)
    paints = paints.expand(-1, -1, CELL_PIXELS, -1, CELL_PIXELS, -1).reshape(rows, IMAGE_SIZE, IMAGE_SIZE, 3)
    axis = torch.arange(IMAGE_SIZE, device=glyph.device)
    across = torch.where(photo[:, 4:].bool(), IMAGE_SIZE - 1 - axis, axis) + photo[:, 3:4]
    down = axis + photo[:, 2:3]
    which, size = photo[:, 0, None, None], photo[:, 1, None, None]
    under = bank[which, size, down[:, :, None], across[:, None]].float() * gain[:, None, None]
    pixels = (under * (1 - opacity) + paints * opacity).clamp(0, 255).to(torch.uint8)
    return pixels, _patch_owners(mask)


def _patch_owners(mask: Tensor) -> Tensor:
    """The cell (b, 144) that each patch shows, from the opacity of every cell (b, 9, 32, 32)."""
    inked = (mask > _INK).float().unflatten(3, (_CELL_PATCHES, PATCH_SIZE)).unflatten(2, (_CELL_PATCHES, PATCH_SIZE))
    covered = inked.mean((3, 5)) > _COVER  # (b, 9, 4, 4)
    cell = torch.arange(CELLS, device=mask.device)[:, None, None]
    owner = torch.where(covered, cell, -1).unflatten(1, (SIDE, SIDE)).transpose(2, 3)  # (b, 3, 4, 3, 4)
    return owner.reshape(len(mask), GRID * GRID)
