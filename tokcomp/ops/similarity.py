"""Cosine similarities: unit vectors, the nearest of a set, the mean within a group. All in float32."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["mean_cosine", "nearest", "unit"]

_CHUNK = 1 << 24
"""Similarities held at a time: 64 MiB."""


def unit(vectors: Tensor, *, floor: float | None = None) -> Tensor:
    """``vectors`` ``[..., d]`` at length 1, float32.

    Args:
        floor: shorter vectors are divided by this length instead. None: the smallest float32, so that a zero vector
            stays zero and every other one gets length 1.
    """
    lowest = torch.finfo(torch.float32).tiny if floor is None else floor
    return _narrow(vectors) / _length(vectors).clamp(min=lowest)


def _length(vectors: Tensor) -> Tensor:
    """Lengths ``[..., 1]`` float32. What is divided by them is float32, too: vectors in half precision need no copy."""
    return torch.linalg.vector_norm(_narrow(vectors), dim=-1, keepdim=True, dtype=torch.float32)


def _narrow(vectors: Tensor) -> Tensor:
    return vectors.float() if vectors.dtype == torch.float64 else vectors


def nearest(queries: Tensor, candidates: Tensor, allowed: Tensor, *, chunk: int = _CHUNK) -> tuple[Tensor, Tensor]:
    """The most similar candidate of every query, by cosine; the lower index wins among equals.

    Args:
        queries: ``[b, m, d]``.
        candidates: ``[b, c, d]``, at least one.
        allowed: ``[b, c]`` False where a candidate must not be chosen.
        chunk: similarities computed at a time, so that memory stays bounded for large images.

    Returns:
        The cosine ``[b, m]`` float32 (-inf where no candidate is allowed) and the candidate's index ``[b, m]``.
    """
    targets = unit(candidates).transpose(-1, -2)  # (b, d, c)
    rows = max(1, chunk // max(1, candidates.shape[0] * candidates.shape[1]))
    best = [
        (unit(part) @ targets).masked_fill(~allowed[:, None], -torch.inf).max(dim=-1) for part in queries.split(rows, 1)
    ]
    return torch.cat([found.values for found in best], 1), torch.cat([found.indices for found in best], 1)


def mean_cosine(vectors: Tensor, *, floor: float = 1e-8) -> Tensor:
    """Mean cosine over the w (w - 1) ordered pairs of different vectors in each group ``[..., w, d]`` -> ``[...]``.

    With unit vectors u the sum over all pairs is |sum u|^2, so no pair is ever formed: O(w d) instead of O(w^2 d).
    Needs w > 1.
    """
    w = vectors.shape[-2]
    vectors = _narrow(vectors)
    length = _length(vectors)
    divisor = length.clamp(min=floor)
    all_pairs = (vectors / divisor).sum(-2).square().sum(-1)
    same = (length / divisor).square().sum((-2, -1))  # 1 for each vector that is not shorter than the floor
    return (all_pairs - same) / (w * (w - 1))
