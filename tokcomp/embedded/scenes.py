"""Seeded scenes: coloured handwritten digits over a dimmed photo.

A scene is drawn as a plan (`draw_scene`) and painted afterwards (`render`), a pure function of
the plan; the language stage of training needs plans only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tokcomp.embedded.glyphs import WARPS, Split, glyph_mask, glyph_pool
from tokcomp.embedded.photos import PHOTOS, SHORT_SIDES, photo_region

IMAGE_SIZE = 96
PATCH_SIZE = 8
GRID = IMAGE_SIZE // PATCH_SIZE
PATCHES = GRID * GRID

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (235, 40, 35),
    "green": (40, 215, 60),
    "blue": (60, 90, 255),
    "yellow": (245, 230, 40),
    "white": (250, 250, 250),
    "purple": (205, 60, 225),
    "orange": (255, 140, 20),
    "cyan": (40, 225, 235),
}
COLOUR_NAMES = tuple(COLOURS)
_PAINTS = np.array(list(COLOURS.values()), np.float32)  # (8, 3)

_GAP = 2  # empty pixels between two glyphs
_TRIES = 40  # placements tried before a glyph is given up
_INK = 0.3  # opacity from which a pixel counts as part of the glyph
_COVER = 0.1  # share of a patch a glyph must cover to own it


@dataclass(frozen=True)
class SceneRules:
    """The distribution scenes are drawn from.

    Attributes:
        counts: probability of 1, 2, 3, ... glyphs.
        sizes: glyph heights in pixels.
        jitter: largest shift in pixels of a glyph's centre from a corner between patches.
        brightness: range the photo is dimmed to.
        ranked: no two glyphs share a column or row of the lattice, so "leftmost" is never a tie.
        repeat_colour: share of scenes in which one colour may occur twice.
        repeat_digit: share of scenes in which a digit may occur twice.
    """

    counts: tuple[float, ...] = (0.1, 0.2, 0.25, 0.25, 0.2)
    sizes: tuple[int, ...] = (16, 18, 20)
    jitter: int = 1
    brightness: tuple[float, float] = (0.2, 0.6)
    ranked: bool = True
    repeat_colour: float = 0.15
    repeat_digit: float = 0.15

    def easy(self) -> SceneRules:
        """The same scenes with small, aligned glyphs on dark photos: the start of a curriculum."""
        return replace(self, sizes=self.sizes[:1], jitter=0, brightness=(0.1, 0.3))


SCENES = SceneRules()
"""The benchmark's distribution."""

DENSE = SceneRules(counts=(0, 0, 0, 0, 0.25, 0.25, 0.25, 0.25), ranked=False)
"""Crowded scenes that show the tower more glyphs per image; used in training alone."""


@dataclass(frozen=True)
class SceneObject:
    """One glyph: what it shows, which drawing it is, where it lies and its ranks.

    ``box`` is (left, top, right, bottom) in pixels; ``column`` and ``row`` are the lattice corner
    it sits on; ``rank_x`` counts the glyphs further left, ``rank_y`` those further up.
    """

    digit: int
    colour: int
    glyph: int
    warp: int
    size: int
    paint: tuple[float, float, float]
    box: tuple[int, int, int, int]
    column: int
    row: int
    rank_x: int = -1
    rank_y: int = -1


@dataclass(frozen=True)
class Background:
    """A crop of a photo: which one, at which size, its top left corner, and how it is dimmed."""

    photo: int
    size: int
    top: int
    left: int
    flip: bool
    gain: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Scene:
    """A complete plan; ``objects`` run left to right.

    ``obj`` has shape (12, 12) and holds, per patch, the index into ``objects`` of the glyph that
    covers most of it, or -1 for background.
    """

    split: Split
    objects: tuple[SceneObject, ...]
    background: Background
    obj: NDArray[np.int64]
    ranked: bool

    @property
    def photo(self) -> int:
        """Index into `PHOTOS`."""
        return self.background.photo


def _draw_background(rng: np.random.Generator, split: Split, rules: SceneRules) -> Background:
    photo, size = int(rng.integers(len(PHOTOS))), int(rng.integers(len(SHORT_SIDES)))
    height, width = photo_region(photo, size, split).shape[:2]
    top, left = int(rng.integers(height - IMAGE_SIZE + 1)), int(rng.integers(width - IMAGE_SIZE + 1))
    gain = np.full(3, rng.uniform(*rules.brightness))
    if split == "train":
        gain = gain * rng.uniform(0.9, 1.1, 3)
    red, green, blue = (float(g) for g in gain)
    return Background(photo, size, top, left, bool(rng.random() < 0.5), (red, green, blue))


def _draw_identities(rng: np.random.Generator, count: int, rules: SceneRules) -> tuple[NDArray[np.int64], ...]:
    """Digits and colours, each ``(count,)``; repeats occur at the rates of ``rules``."""
    colours = rng.permutation(len(COLOUR_NAMES))[:count]
    if count > 1 and rng.random() < rules.repeat_colour:
        first, second = rng.permutation(count)[:2]
        colours[first] = colours[second]
    repeat = rng.random() < rules.repeat_digit
    digits = rng.integers(0, 10, count) if repeat else rng.permutation(10)[:count]
    return digits, colours


def _place(
    rng: np.random.Generator, shape: tuple[int, ...], placed: list[SceneObject], rules: SceneRules
) -> tuple[int, int, tuple[int, int, int, int]] | None:
    """A free lattice corner ``(column, row)`` and box for a glyph of ``shape``, or None."""
    height, width = shape
    # All tries are drawn at once: one call of the generator costs as much as forty numbers.
    corners = rng.integers(1, GRID, (_TRIES, 2)).tolist()
    shifts = rng.integers(-rules.jitter, rules.jitter + 1, (_TRIES, 2)).tolist()
    for (column, row), shift in zip(corners, shifts, strict=True):
        if rules.ranked and any(o.column == column or o.row == row for o in placed):
            continue
        left = min(max(column * PATCH_SIZE - width // 2 + shift[0], 0), IMAGE_SIZE - width)
        top = min(max(row * PATCH_SIZE - height // 2 + shift[1], 0), IMAGE_SIZE - height)
        box = (left, top, left + width, top + height)
        if all(_apart(box, o.box) for o in placed):
            return column, row, box
    return None


def _apart(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] >= b[2] + _GAP or b[0] >= a[2] + _GAP or a[1] >= b[3] + _GAP or b[1] >= a[3] + _GAP


def _rank(objects: list[SceneObject]) -> tuple[SceneObject, ...]:
    """Sorted left to right, with both ranks filled in."""
    by_row = sorted(range(len(objects)), key=lambda i: objects[i].row)
    rows = {index: rank for rank, index in enumerate(by_row)}
    by_column = sorted(range(len(objects)), key=lambda i: objects[i].column)
    return tuple(replace(objects[i], rank_x=rank, rank_y=rows[i]) for rank, i in enumerate(by_column))


def _patch_owners(objects: tuple[SceneObject, ...]) -> NDArray[np.int64]:
    """The ``obj`` map (12, 12) of a scene."""
    owner = np.full((GRID, GRID), -1)
    best = np.full((GRID, GRID), _COVER)
    for index, item in enumerate(objects):
        left, top, right, bottom = item.box
        canvas = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
        canvas[top:bottom, left:right] = glyph_mask(item.glyph, item.size, item.warp) > _INK
        cover = canvas.reshape(GRID, PATCH_SIZE, GRID, PATCH_SIZE).mean((1, 3))
        mine = cover > best
        owner[mine], best[mine] = index, cover[mine]
    return owner


def draw_scene(rng: np.random.Generator, split: Split, rules: SceneRules = SCENES) -> Scene:
    """Draw one scene; it depends on the generator's state, ``split`` and ``rules`` alone.

    A crowded scene may hold fewer glyphs than drawn when no free place is left, never none.
    """
    background = _draw_background(rng, split, rules)
    count = int(rng.choice(len(rules.counts), p=rules.counts)) + 1
    digits, colours = _draw_identities(rng, count, rules)
    pool, placed = glyph_pool(split), list[SceneObject]()
    for digit, colour in zip(digits.tolist(), colours.tolist(), strict=True):
        glyph = pool[digit][rng.integers(len(pool[digit]))]
        warp = int(rng.integers(-1, WARPS)) if split == "train" else -1
        size = rules.sizes[rng.integers(len(rules.sizes))]
        place = _place(rng, glyph_mask(glyph, size, warp).shape, placed, rules)
        if place is None:
            continue
        column, row, box = place
        red, green, blue = (float(v) for v in np.clip(_PAINTS[colour] + rng.uniform(-15, 15, 3), 0, 255))
        placed.append(SceneObject(digit, colour, glyph, warp, size, (red, green, blue), box, column, row))
    objects = _rank(placed)
    return Scene(split, objects, background, _patch_owners(objects), rules.ranked)


def render(scene: Scene) -> NDArray[np.uint8]:
    """Paint a scene: pixels (96, 96, 3)."""
    back = scene.background
    region = photo_region(back.photo, back.size, scene.split)
    crop = region[back.top : back.top + IMAGE_SIZE, back.left : back.left + IMAGE_SIZE]
    if back.flip:
        crop = crop[:, ::-1]
    pixels = crop.astype(np.float32) * np.array(back.gain, np.float32)
    for item in scene.objects:
        left, top, right, bottom = item.box
        opacity = glyph_mask(item.glyph, item.size, item.warp)[:, :, None]  # (h, w, 1)
        under = pixels[top:bottom, left:right]
        pixels[top:bottom, left:right] = under * (1 - opacity) + np.array(item.paint, np.float32) * opacity
    return pixels.clip(0, 255).astype(np.uint8)
