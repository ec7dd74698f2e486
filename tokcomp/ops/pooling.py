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
    index = torch.arange(n + 1, device=tokens.device).expand(b, -1)  # one place more takes what is written nowhere
    everything = index[:, :n]
    complete = valid is None
    home = index if valid is None else torch.nn.functional.pad(everything.where(valid, -1), (0, 1))
    place = everything if origin is None else origin
    patches = window_members(grid, window, device=tokens.device)
    if patches.numel() == 0:
        return merge_into(home[:, :n], place, complete=complete)

    members, missing = _members(patches, grid, place, everything, _alone(valid, sizes, protected))  # (b, windows, w)
    scores = mean_cosine(gather_tokens(tokens, members.flatten(1), padded=missing is not None).view(*members.shape, -1))
    failing = (scores >= threshold).logical_not()  # NaN does not merge
    failing = failing if missing is None else failing | missing
    if batch_minimum:
        failing = _all_but_best(scores, failing)

    members = members.masked_fill(failing[..., None], n)
    last = members[..., -1]
    home = home.scatter(1, members.flatten(1), last[..., None].expand_as(members).flatten(1))[:, :n]
    if order == "image":
        return merge_into(home, place, complete=complete)
    # Merged windows stand first, and a negative cosine is below 2.
    key = torch.empty(b, n + 1, device=tokens.device)
    torch.add(place, 2, out=key[:, :n])
    return merge_into(home, key.scatter_(1, last, -scores)[:, :n], complete=complete)


def _alone(valid: Tensor | None, sizes: Tensor | None, protected: Tensor | None) -> Tensor | None:
    """Which tokens stand for one patch and may merge ``[b, n]``; None: all."""
    alone = valid
    if sizes is not None:
        alone = sizes == 1 if alone is None else alone & (sizes == 1)
    if protected is not None:
        alone = ~protected if alone is None else alone & ~protected
    return alone


def _members(
    patches: Tensor, grid: tuple[int, int], origin: Tensor, index: Tensor, alone: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The tokens that stand at ``patches`` ``[windows, w]``, -1 where there is none that may merge ``[b, windows, w]``, and
    the windows that miss one ``[b, windows]`` (None: none does)."""
    (b, n), area = origin.shape, grid[0] * grid[1]
    if alone is None and n == area:
        return torch.empty_like(index).scatter_(1, origin, index)[:, patches], None
    patch = origin if alone is None else origin.where(alone, area)
    members = origin.new_full((b, area + 1), -1).scatter_(1, patch, index)[:, patches]
    return members, (members < 0).any(-1)


def _all_but_best(scores: Tensor, failing: Tensor) -> Tensor:
    """Which windows do not merge ``[b, windows]`` where every image merges as many as the one with fewest that pass."""
    order = scores.masked_fill(failing, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(-1, order, places)
    return rank >= (~failing).sum(-1).min()


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
