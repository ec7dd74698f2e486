"""Bipartite soft matching: which tokens merge into which (ToMe), and how many in each block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokcomp.ops.merging import merge_into
from tokcomp.ops.similarity import nearest, unit
from tokcomp.selection import Selection

__all__ = ["bipartite_matching", "energy_matching", "merge_schedule"]


_AT_ONCE = 1 << 26  # four similarities per pair of tokens are held at a time, 64 MiB


def bipartite_matching(
    metric: Tensor, r: int, *, n_prefix: int = 0, valid: Tensor | None = None, locked: Tensor | None = None
) -> Selection:
    """Merge the ``r`` tokens that resemble another one most into it (ToMe, arXiv 2210.09461, section 3).

    The sequence is ``n_prefix`` prefix tokens (CLS), which take no part, and then the n tokens given here. Tokens at
    even places of that sequence form set A, those at odd places set B. Every token of A finds its most similar token of
    B by cosine; the ``r`` most similar pairs merge, A into B. Result, as in the published code: the unmerged tokens of
    A, then B in order. Unmerged A stand in ascending order if there is a prefix, else in descending similarity (which
    matters: the next block splits by place again). A row that merges nothing keeps its order.

    Args:
        metric: ``[b, n, d]`` what tokens are compared by: ToMe takes the attention keys, mean over heads.
        r: pairs to merge; at most ``(T - p) // 2`` of each row, T its tokens with prefix, p prefix and locked tokens.
        n_prefix: prefix tokens before the first token of ``metric``.
        valid: ``[b, n]`` False for padding at the end of a row; rows of different length merge as they would alone.
        locked: ``[b, n]`` True for tokens that neither merge nor are merged into.

    Returns:
        The merging, weighted by token sizes when it is applied (``weight`` None); the representative is B's token.
    """
    b, n = metric.shape[:2]
    if valid is None and locked is None and 0 < r <= n // 2 and b * n * n <= _AT_ONCE:
        return _match_whole_rows(metric, r, n_prefix)
    index = torch.arange(n, device=metric.device).expand(b, n)
    valid = torch.ones_like(index, dtype=torch.bool) if valid is None else valid
    free = valid if locked is None else valid & ~locked
    here = index.where(valid, -1)
    start = n_prefix % 2
    a, z = slice(start, None, 2), slice(1 - start, None, 2)
    if r <= 0 or index[:, a].shape[1] == 0 or index[:, z].shape[1] == 0:
        return merge_into(here, index)

    similarity, partner = nearest(metric[:, a], metric[:, z], free[:, z])  # (b, |A|) each
    similarity = similarity.masked_fill(~free[:, a], -torch.inf)
    # A stable sort makes the lower index win among equals, on every device.
    order = similarity.sort(dim=-1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(-1, order, index[:, : order.shape[1]])
    # T - p of the published clamp is the number of free tokens; locked ones may leave A with fewer than half of them.
    sources = free[:, a].sum(-1).where(free[:, z].any(-1), 0)
    pairs = torch.minimum(free.sum(-1) // 2, sources).clamp(max=r)
    merged = rank < pairs[:, None]

    home, place = here.clone(), index.clone()
    home[:, a] = index[:, z].gather(-1, partner).where(merged, here[:, a])
    if n_prefix == 0:
        place[:, a] = rank
    place[:, z] += n
    return merge_into(home, place.where(pairs[:, None] > 0, index))


def _match_whole_rows(metric: Tensor, r: int, n_prefix: int) -> Selection:
    """:func:`bipartite_matching` of rows without padding and locked tokens: the counts are known, nothing is asked of the
    device."""
    b, n = metric.shape[:2]
    start = n_prefix % 2
    a, z = slice(start, None, 2), slice(1 - start, None, 2)
    index = torch.arange(n, device=metric.device)
    vectors = unit(metric)
    similarity, partner = torch.bmm(vectors[:, a], vectors[:, z].transpose(1, 2)).max(dim=-1)
    order = similarity.sort(dim=-1, descending=True, stable=True).indices
    alone = order[:, r:] if n_prefix == 0 else order[:, r:].sort(dim=-1).values
    keep = torch.cat([index[a][alone], index[z].expand(b, -1)], dim=1)
    assign = torch.empty(b, n, dtype=torch.long, device=metric.device)
    # All of A go to their partners in B, which stand behind the unmerged ones; then every survivor goes to its own slot.
    torch.add(partner, alone.shape[1], out=assign[:, a])
    assign.scatter_(1, keep, index[: n - r].expand(b, -1))
    return Selection(keep=keep, assign=assign, ragged=False, complete=True)


def energy_matching(
    metric: Tensor, r: int, *, margin: float, alpha: float = 1.0, valid: Tensor, locked: Tensor, complete: bool = False
) -> Selection:
    """Merge ``r`` of the tokens that have most others like them into others of that kind (PiToMe, arXiv 2405.16148).

    The energy of a token is the mean of ``f(c)`` over its cosines with all others, ``f(c) = c`` from ``margin`` on, else
    ``alpha (exp(c - margin) - 1)``. Of the ``2 r`` tokens of highest energy, in descending order, those at even places merge
    each into its most similar one at an odd place. Result: untouched tokens in order, then the odd ones by descending energy.

    Args:
        metric: ``[b, n, d]`` what tokens are compared by.
        r: pairs to merge; at most half of a row's free tokens.
        margin, alpha: of the energy.
        valid: ``[b, n]`` False for padding at the end of a row.
        locked: ``[b, n]`` True for tokens that neither merge nor are merged into; they count as others.
        complete: True promises that no token is padding.

    Returns:
        The merging, weighted by token sizes when it is applied.
    """
    b, n = valid.shape
    index = torch.arange(n, device=metric.device).expand(b, n)
    directions = unit(metric)
    similarity = directions @ directions.transpose(-1, -2)  # (b, n, n)
    felt = torch.where(similarity >= margin, similarity, (similarity - margin).expm1_().mul_(alpha))
    felt.diagonal(dim1=-2, dim2=-1).zero_()
    energy = (felt @ valid[..., None].float())[..., 0] / valid.sum(dim=1, keepdim=True)
    free = valid & ~locked
    # A stable sort makes the lower index win among equals, on every device.
    order = energy.masked_fill(~free, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    pairs = (free.sum(dim=1, keepdim=True) // 2).clamp(max=r)
    most = min(r, n // 2)
    if most == 0:
        return merge_into(index.where(valid, -1), index)
    evens, odds = order[:, : 2 * most : 2], order[:, 1 : 2 * most : 2]
    there = torch.arange(most, device=metric.device) < pairs  # (b, most)
    rows = similarity.gather(1, evens[..., None].expand(-1, -1, n))
    near = rows.gather(2, odds[:, None].expand(-1, most, -1)).masked_fill(~there[:, None], -torch.inf)
    target = odds.gather(1, near.argmax(dim=-1))
    spare = torch.nn.functional.pad(index.where(valid, -1), (0, 1))
    home = spare.scatter(1, evens.where(there, n), target)[:, :n]
    ranks = n + torch.arange(most, device=metric.device).expand(b, -1)
    place = torch.nn.functional.pad(index, (0, 1)).scatter(1, odds.where(there, n), ranks)[:, :n]
    return merge_into(home, place, complete=complete)


def merge_schedule(r: int | Sequence[int], depth: int, *, inflect: float = 0.0) -> tuple[int, ...]:
    """How many tokens merge in each of ``depth`` blocks.

    A number is constant at ``inflect`` 0; else it changes linearly with the same sum: from ``lo = trunc(r (1 - f))`` in
    the first block to ``2 r - lo`` in the last, truncated (f = -1 is the paper's decreasing schedule). A sequence is
    used as it is, padded with 0.

    Raises:
        ValueError: a sequence has more entries than there are blocks.
    """
    if not isinstance(r, int):
        if len(r) > depth:
            raise ValueError(f"r has {len(r)} entries, but there are {depth} blocks: give one number per block at most")
        return (*r, *[0] * (depth - len(r)))
    if depth == 1:
        return (r,)
    low = int(r * (1.0 - inflect))
    rise = 2 * (r - low)
    return tuple(int(low + block * rise / (depth - 1)) for block in range(depth))
