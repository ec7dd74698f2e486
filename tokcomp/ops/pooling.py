"""Merging by place in the patch grid: windows of similar patches (MustDrop), and plain average pooling."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tokcomp.ops.merging import gather_tokens, merge_into
from tokcomp.ops.similarity import mean_cosine
from tokcomp.selection import Selection

__all__ = ["average_pool", "merge_windows", "window_members"]


def window_members(grid: tuple[int, int], window: tuple[int, int], *, device: torch.device | None = None) -> Tensor:
    """Patch ids of every whole window ``[windows, rows * columns of a window]``: windows in raster order, patches in
    raster order within each. Rows and columns of the grid that no whole window covers are left out."""
    (rows, columns), (high, wide) = grid, window
    down, across = rows // high, columns // wide
    ids = torch.arange(rows * columns, device=device).view(rows, columns)[: down * high, : across * wide]
    return ids.reshape(down, high, across, wide).transpose(1, 2).reshape(down * across, high * wide)


def merge_windows(
    tokens: Tensor,
    grid: tuple[int, int],
    window: tuple[int, int],
    threshold: float,
    *,
    order: Literal["image", "published"] = "published",
    valid: Tensor | None = None,
    sizes: Tensor | None = None,
    origin: Tensor | None = None,
    protected: Tensor | None = None,
    batch_minimum: bool = False,
) -> Selection:
    """Merge every window whose patches resemble each other (MustDrop's local spatial merging, arXiv 2411.10803).

    The score of a window is the mean cosine over its pairs of different patches; windows with a score of at least
    ``threshold`` become one token each, represented by their last patch. A window takes part only if all its patches
    still stand alone. Patches outside whole windows stay as they are.

    Args:
        tokens: ``[b, n, d]``.
        grid, window: rows and columns of the original patch grid and of a window.
        threshold: least score of a merged window.
        order: ``published``: merged windows by descending score, then all other tokens in raster order; ``image``: all
            in raster order, a merged window at the place of its representative.
        valid, sizes, origin, protected: ``[b, n]`` as in :class:`~tokcomp.types.VisionView`. None: the whole grid in
            raster order, every patch a token of its own.
        batch_minimum: merge as many windows in each image as in the image with the fewest (the best ones). The
            published code does this so that a batch stays rectangular; it makes an image depend on its neighbours.

    Returns:
        The merging, weighted by token sizes when it is applied (all 1, hence the plain mean).
    """
    b, n = tokens.shape[:2]
    index = torch.arange(n, device=tokens.device).expand(b, n)
    valid = torch.ones_like(index, dtype=torch.bool) if valid is None else valid
    origin = index if origin is None else origin
    home, place = index.where(valid, -1), origin
    patches = window_members(grid, window, device=tokens.device)
    if patches.numel() == 0:
        return merge_into(home, place)

    alone = valid if sizes is None else valid & (sizes == 1)
    alone = alone if protected is None else alone & ~protected
    members = _standing_at(origin.where(alone, grid[0] * grid[1]), patches, grid)  # (b, windows, w)
    whole = (members >= 0).all(-1)
    scores = mean_cosine(gather_tokens(tokens, members.flatten(1)).view(*members.shape, tokens.shape[-1]))
    rank, merged = _best_windows(scores, whole & (scores >= threshold), batch_minimum)

    last = members[..., -1].where(merged, n)
    home = _put(home, members.where(merged[..., None], n).flatten(1), last.repeat_interleave(members.shape[-1], 1))
    if order == "published":
        place = _put(place + len(patches), last, rank)
    return merge_into(home, place)


def _best_windows(scores: Tensor, passing: Tensor, batch_minimum: bool) -> tuple[Tensor, Tensor]:
    """Each window's rank by descending score among those that pass, and which windows merge; both ``[b, windows]``."""
    order = scores.masked_fill(~passing, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, places)
    counts = passing.sum(-1)
    counts = counts.min().expand_as(counts) if batch_minimum else counts
    return rank, rank < counts[:, None]


def _standing_at(patch: Tensor, patches: Tensor, grid: tuple[int, int]) -> Tensor:
    """The token that stands at each of ``patches`` ``[windows, w]``, -1 where there is none: ``[b, windows, w]``.
    ``patch`` ``[b, n]`` is the patch of each token, one beyond the grid for tokens that do not count."""
    b, n = patch.shape
    standing = patch.new_full((b, grid[0] * grid[1] + 1), -1)
    standing.scatter_(1, patch, torch.arange(n, device=patch.device).expand(b, n))
    return standing[:, patches]


def _put(row: Tensor, at: Tensor, values: Tensor) -> Tensor:
    """A copy of ``row`` ``[b, n]`` with ``values`` written at the indices ``at``; index n writes nothing."""
    spare = torch.cat([row, row[:, :1]], 1)
    return spare.scatter_(1, at, values)[:, :-1]


def average_pool(grid: tuple[int, int], window: tuple[int, int], origin: Tensor, valid: Tensor) -> Selection:
    """Average every window of the grid; windows at the right and lower edge average what they have.

    Args:
        grid, window: rows and columns of the original patch grid and of a window.
        origin, valid: ``[b, n]`` as in :class:`~tokcomp.types.VisionView`. Windows average the tokens that stand in
            them, all with equal weight; windows without any vanish.

    Returns:
        The merging: windows in raster order, each represented by its first token.
    """
    b, n = origin.shape
    (rows, columns), (high, wide) = grid, window
    across = -(-columns // wide)
    block = (origin // columns // high) * across + origin % columns // wide  # (b, n)
    index = torch.arange(n, device=origin.device).expand(b, n)
    # Padding stands at the end of a row, so it is never the first of a block that holds a token.
    first = index.new_full((b, -(-rows // high) * across), n)
    first.scatter_reduce_(1, block, index, "amin")
    home = first.gather(1, block).where(valid, -1)
    return merge_into(home, block, weight=torch.ones_like(origin, dtype=torch.float32))
