"""What a filter drops, put to use: the best of it is clustered, and each cluster's mean stays as one token."""

from __future__ import annotations

import torch
from torch import Tensor

from tokcomp.ops.clustering import density_peaks
from tokcomp.selection import Selection

__all__ = ["recycle"]


def recycle(tokens: Tensor, valid: Tensor, kept: Selection, scores: Tensor, share: float, *, per_cluster: int = 10,
            noise: Tensor | None = None) -> Selection:  # fmt: skip
    """Add clusters of dropped tokens behind the kept ones (SparseVLM, arXiv 2410.04417).

    Of the d tokens that a row drops, the ``trunc(share d) + 1`` with the highest scores are clustered by density peaks
    into ``trunc(that / per_cluster) + 1`` clusters; each becomes the plain mean of its members, in the order of the
    clusters' centres, and stands at its centre.

    Args:
        tokens: states ``[b, n, d]`` that are clustered. ``valid``: ``[b, n]`` False for padding.
        kept: what stays as it is.
        scores: ``[b, n]``.
        share: of the dropped tokens that is put to use.
        per_cluster: tokens of a cluster, on average.
        noise: ``[b, most]`` added to the densities of the clustered tokens, best first.

    Returns:
        A selection that merges; ``kept`` itself where nothing is dropped.
    """
    b, n = valid.shape
    dropped = valid & ~_chosen(kept.keep, n)
    lost = dropped.sum(dim=1)
    used = torch.where(lost > 0, (lost.double() * share).long() + 1, 0)
    clusters = torch.where(used > 0, used // per_cluster + 1, 0)
    (most, widest), fewest = torch.stack([used, clusters]).amax(dim=1).tolist(), int(clusters.amin())
    if not most:
        return kept
    pool = (
        scores.masked_fill(~dropped, -torch.inf).sort(dim=1, descending=True, stable=True).indices[:, :most]
    )  # (b, p)
    real = torch.arange(most, device=pool.device) < used[:, None]
    points = tokens.gather(1, pool[..., None].expand(-1, -1, tokens.shape[2]))
    centres, label = density_peaks(points, real, clusters, widest, noise=noise)
    heads = pool.gather(1, centres.clamp(min=0)).masked_fill(centres < 0, -1)  # (b, c) as tokens
    keep = torch.cat([kept.keep.expand(b, -1), heads], dim=1)
    first = (kept.keep >= 0).sum(dim=1, keepdim=True).expand(b, 1)  # the slot of a row's first cluster
    assign = torch.full((b, n + 1), -1, device=keep.device)
    slot = torch.arange(kept.keep.shape[1], device=keep.device).expand(b, -1)
    assign = assign.scatter(1, kept.keep.where(kept.keep >= 0, n).expand(b, -1), slot)
    assign = assign.scatter(1, pool.where(real, n), label + first)[:, :n]
    ragged = kept.ragged or fewest != widest
    if ragged:  # padding goes to the end of the row
        keep = keep.gather(1, (keep < 0).to(torch.uint8).argsort(dim=1, stable=True))
        keep = keep[:, : int((keep >= 0).sum(dim=1).max())]
    return Selection.merge(keep, assign, weight=torch.ones_like(scores), ragged=ragged)


def _chosen(keep: Tensor, n: int) -> Tensor:
    """The tokens of ``keep`` ``[b, k]`` as a mask ``[b, n]``."""
    mask = torch.zeros(keep.shape[0], n + 1, dtype=torch.bool, device=keep.device)
    return mask.scatter(1, keep.where(keep >= 0, n), True)[:, :n]
