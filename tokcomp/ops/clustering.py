"""Clustering by density peaks: centres are dense points far from every denser one."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["density_peaks"]


def density_peaks(points: Tensor, valid: Tensor, clusters: Tensor, widest: int, *,
                  noise: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Centres and clusters of each row's points, k nearest neighbours and density peaks (DPC-KNN).

    With c clusters wanted and ``d_ij = |x_i - x_j| / sqrt(width)``: the density of point i is
    ``rho_i = exp(-mean of the c smallest d_ij^2)``, itself included; ``delta_i`` is the distance to the nearest denser
    point, or the largest distance of all where there is none; the c points with the largest ``delta * rho`` are the
    centres, in descending order of it, and every point joins the nearest centre. Of equally dense points the earlier
    one counts as denser; among equal products and distances the earlier one wins. With two clusters every pair of mutual
    neighbours is equally dense, so that distances have to be the same in both directions to the last bit; they are.

    Args:
        points: ``[b, p, d]``.
        valid: ``[b, p]`` False for padding.
        clusters: ``[b]`` clusters of each row, at most its valid points.
        widest: the largest of ``clusters``.
        noise: ``[b, p]`` added to the densities (published code draws it, times 1e-6, to break ties); None: none.

    Returns:
        ``centres`` ``[b, widest]``, indices of points, -1 beyond a row's clusters, and ``label`` ``[b, p]``, the cluster
        of each point as an index into ``centres``, -1 for padding.
    """
    p = points.shape[1]
    pairs = valid[:, :, None] & valid[:, None]
    distance = _distances(points.float(), valid)  # (b, p, p)
    density = _density(distance.masked_fill(~pairs, torch.inf), clusters, widest)
    if noise is not None:
        density = density + noise
    index = torch.arange(p, device=points.device)
    # (b, i, j): j is denser than i
    denser = (density[:, None] > density[:, :, None]) | (
        (density[:, None] == density[:, :, None]) & (index < index[:, None])
    )
    largest = distance.masked_fill(~pairs, 0.0).flatten(1).amax(dim=1)[:, None, None]
    delta = torch.where(denser & pairs, distance, largest).amin(dim=2)
    peak = (delta * density).masked_fill(~valid, -torch.inf)
    centres = peak.sort(dim=1, descending=True, stable=True).indices[:, :widest]  # (b, c)
    number = torch.arange(widest, device=points.device)
    beyond = number >= clusters[:, None]
    to_centre = distance.gather(1, centres[..., None].expand(-1, -1, p)).masked_fill(beyond[..., None], torch.inf)
    label = to_centre.argmin(dim=1)
    # A centre has its own cluster, also where another one lies on the same spot.
    spare = label.new_zeros(label.shape[0], 1)
    own = torch.cat([label, spare], dim=1).scatter(1, centres.masked_fill(beyond, p), number.expand_as(centres))
    return centres.masked_fill(beyond, -1), own[:, :p].masked_fill(~valid, -1)


def _distances(points: Tensor, valid: Tensor) -> Tensor:
    """``|x_i - x_j| / sqrt(width)`` ``[b, p, p]``, symmetric to the last bit and 0 on the diagonal."""
    weight = valid[..., None].to(points.dtype)
    points = points.where(valid[..., None], 0.0)
    # Around their mean, so that what all points share does not drown what tells them apart.
    points = (points - points.sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True).clamp(min=1)) * weight
    product = points @ points.transpose(1, 2)
    product = (product + product.transpose(1, 2)) / 2
    norm = product.diagonal(dim1=1, dim2=2)
    squared = norm[:, :, None] + norm[:, None] - 2 * product
    squared = squared.masked_fill(torch.eye(points.shape[1], dtype=torch.bool, device=points.device), 0.0)
    return squared.clamp(min=0.0).sqrt() / points.shape[-1] ** 0.5


def _density(distance: Tensor, clusters: Tensor, widest: int) -> Tensor:
    nearest = distance.square().topk(widest, dim=2, largest=False).values.cumsum(dim=2)  # (b, p, c)
    last = (clusters[:, None, None] - 1).clamp(min=0).expand(-1, nearest.shape[1], 1)
    return (-nearest.gather(2, last)[..., 0] / clusters.clamp(min=1)[:, None]).exp()
