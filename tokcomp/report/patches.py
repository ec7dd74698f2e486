"""Paints what happened to the patches of an image onto the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokcomp.report.story import Flags, Story
from tokcomp.report.style import GONE, GROUPS, INK, KEY, LEFT

__all__ = ["draw_cached", "draw_cut", "draw_seen", "draw_vision", "group_tints"]

Rgb = NDArray[np.float64]


def draw_seen(axes: Any, story: Story) -> None:
    """The picture as the model saw it."""
    _show(axes, story, _pixels(story))


def draw_vision(axes: Any, story: Story) -> None:
    """Kept patches as they are, merged ones tinted by group and outlined, dropped ones faded."""
    owner = story.owner
    merged, tints = group_tints(owner, story.grid)
    picture = _blend(_faded(_pixels(story), _spread(owner < 0, story)), tints, np.where(merged, 0.5, 0.0), story)
    _show(axes, story, picture)
    _outline(axes, np.where(merged, owner + 1, np.where(owner < 0, -1, 0)), story)
    _mark_keys(axes, story, story.keys)


def draw_cut(axes: Any, story: Story, layer: int) -> None:
    """Patches whose token goes on as they are, those that leave after ``layer`` in vermillion, those that left before faded."""
    alive, before = story.alive[layer], _alive_before(story, layer)
    leaving = before & ~alive
    picture, tints = _pixels(story), np.tile(_rgb(LEFT), (alive.size, 1))
    # What leaves loses its colours first, so that an orange picture does not look like the mark.
    picture = np.where(_spread(leaving, story)[..., None], _grey(picture), picture)
    picture = _blend(_faded(picture, _spread(~before, story)), tints, np.where(leaving, 0.62, 0.0), story)
    _show(axes, story, picture)
    _outline(axes, np.where(alive, 0, np.where(leaving, 1, 2)), story)
    _mark_keys(axes, story, story.keys & alive)


def draw_cached(axes: Any, story: Story) -> Any:
    """How many of the layers' heads still hold each patch's token at the end; gives the image for a colour bar."""
    share = story.cache.share
    assert share is not None
    _show(axes, story, 0.35 + 0.65 * _grey(_pixels(story)))
    rows, columns = story.grid
    return axes.imshow(share.reshape(rows, columns), cmap="cividis", vmin=0.0, vmax=1.0, alpha=0.78,
                       extent=(0, columns, rows, 0), interpolation="nearest")  # fmt: skip


def group_tints(owner: NDArray[np.int64], grid: tuple[int, int]) -> tuple[Flags, Rgb]:
    """Which patches are in a merged group ``[n]``, and the tint of each ``[n, 3]``; groups that touch differ while the
    palette lasts."""
    counts = np.bincount(owner[owner >= 0], minlength=owner.size)
    merged = (owner >= 0) & (counts[owner] > 1)
    colour: dict[int, int] = {}
    touching = _touching(owner, merged, grid)
    for group in dict.fromkeys(owner[merged].tolist()):
        taken = {colour[other] for other in touching.get(group, ()) if other in colour}
        free = [index for index in range(len(GROUPS)) if index not in taken]
        # With several free tints, spread them over the groups.
        colour[group] = free[len(colour) % len(free)] if free else len(colour) % len(GROUPS)
    palette = np.stack([_rgb(tint) for tint in GROUPS])
    tints = np.zeros((owner.size, 3))
    tints[merged] = palette[[colour[group] for group in owner[merged].tolist()]]
    return merged, tints


def _touching(owner: NDArray[np.int64], merged: Flags, grid: tuple[int, int]) -> dict[int, set[int]]:
    groups = np.where(merged, owner, -1).reshape(grid)
    pairs = [(groups[:, 1:], groups[:, :-1]), (groups[1:], groups[:-1]),
             (groups[1:, 1:], groups[:-1, :-1]), (groups[1:, :-1], groups[:-1, 1:])]  # fmt: skip
    touching: dict[int, set[int]] = {}
    for left, right in pairs:
        for a, b in zip(left.ravel().tolist(), right.ravel().tolist(), strict=True):
            if a != b and a >= 0 and b >= 0:
                touching.setdefault(a, set()).add(b)
                touching.setdefault(b, set()).add(a)
    return touching


def _alive_before(story: Story, layer: int) -> Flags:
    earlier = [story.alive[cut] for cut in story.alive if cut < layer]
    return earlier[-1] if earlier else story.owner >= 0


def _rgb(colour: str) -> Rgb:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def _pixels(story: Story) -> Rgb:
    """The part of the picture that the patches cover."""
    (rows, columns), (height, width) = story.grid, story.seen.shape[:2]
    return story.seen[: height // rows * rows, : width // columns * columns]


def _spread(values: NDArray[Any], story: Story) -> NDArray[Any]:
    """Values of patches ``[n, ...]`` to pixels ``[h, w, ...]``."""
    (rows, columns), (height, width) = story.grid, _pixels(story).shape[:2]
    return values.reshape(rows, columns, *values.shape[1:]).repeat(height // rows, 0).repeat(width // columns, 1)


def _faded(picture: Rgb, where: Flags) -> Rgb:
    return np.where(where[..., None], 0.18 * _grey(picture) + 0.82 * _rgb(GONE), picture)


def _grey(picture: Rgb) -> Rgb:
    return picture.mean(axis=2, keepdims=True).repeat(3, axis=2)


def _blend(picture: Rgb, tints: Rgb, strength: NDArray[np.float64], story: Story) -> Rgb:
    share = _spread(strength, story)[..., None]
    mixed: Rgb = (1 - share) * picture + share * _spread(tints, story)
    return mixed


def _show(axes: Any, story: Story, picture: Rgb) -> None:
    rows, columns = story.grid
    # Few pixels are shown as such, so that patch borders lie where the model has them.
    coarse = picture.shape[0] < 300
    axes.imshow(picture, extent=(0, columns, rows, 0), interpolation="nearest" if coarse else "antialiased")
    axes.set(xticks=[], yticks=[], xlim=(0, columns), ylim=(rows, 0), aspect=_patch_aspect(story))
    for spine in axes.spines.values():
        spine.set_color(INK)


def _patch_aspect(story: Story) -> float:
    (rows, columns), (height, width) = story.grid, _pixels(story).shape[:2]
    return (height / rows) / (width / columns)


def _outline(axes: Any, labels: NDArray[np.int64], story: Story) -> None:
    """Lines between neighbouring patches of different label."""
    from matplotlib.collections import LineCollection

    table = labels.reshape(story.grid)
    lines: list[Sequence[tuple[int, int]]] = []
    lines += [((x + 1, y), (x + 1, y + 1)) for y, x in np.argwhere(table[:, 1:] != table[:, :-1])]
    lines += [((x, y + 1), (x + 1, y + 1)) for y, x in np.argwhere(table[1:] != table[:-1])]
    fine = max(story.grid) > 16
    for colour, width in (("#00000099", 1.6 if fine else 2.4), ("#ffffffee", 0.7 if fine else 1.1)):
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=width, capstyle="round"))


def _mark_keys(axes: Any, story: Story, where: Flags) -> None:
    y, x = np.divmod(np.flatnonzero(where), story.grid[1])
    inches = axes.get_window_extent().width / axes.figure.dpi / story.grid[1]
    axes.scatter(x + 0.5, y + 0.5, s=(0.62 * 72 * inches) ** 2, marker="*", color=KEY, edgecolor=INK, linewidth=0.6)
