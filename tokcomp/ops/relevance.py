"""How much image tokens have to do with a text, by cosine (CDPruner)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokcomp.ops.similarity import unit

__all__ = ["clip_relevance", "in_unit_range", "mean_cosine_with"]


def mean_cosine_with(tokens: Tensor, text: Tensor, valid: Tensor) -> Tensor:
    """The mean cosine of every token with the vectors of a text ``[b, n]`` float32.

    Args:
        tokens: ``[b, n, d]``.
        text: ``[b, t, d]``.
        valid: ``[b, t]`` False for padding; at least one per row.
    """
    mean = (unit(text) * valid[..., None]).sum(dim=1) / valid.sum(dim=1, keepdim=True)  # (b, d)
    return (unit(tokens) @ mean[..., None])[..., 0]


def clip_relevance(image: Tensor, text: Tensor) -> Tensor:
    """The published relevance in CLIP's joint space ``[b, n]``: the *negative* mean cosine of patch embeddings
    ``[b, n, e]`` with the embeddings of the text's segments ``[m, e]`` (patches, unlike the pooled image, point away from
    their text)."""
    every = torch.ones(image.shape[0], text.shape[0], dtype=torch.bool, device=image.device)
    return -mean_cosine_with(image, text.expand(image.shape[0], -1, -1), every)


def in_unit_range(relevance: Tensor, valid: Tensor, owners: Sequence[int]) -> Tensor:
    """``(r - min + 1e-6) / (max - min)``, minimum and maximum over all rows of one image ``[b, n]``; 1 where they are equal.

    Args:
        relevance: ``[b, n]``.
        valid: ``[b, n]`` False for padding, which counts for nothing.
        owners: the image that each row belongs to.
    """
    owner = torch.tensor(list(owners), device=relevance.device)
    images = max(owners) + 1
    lowest = relevance.masked_fill(~valid, torch.inf).amin(dim=1)
    highest = relevance.masked_fill(~valid, -torch.inf).amax(dim=1)
    least = relevance.new_full((images,), torch.inf).scatter_reduce(0, owner, lowest, "amin")[owner][:, None]
    most = relevance.new_full((images,), -torch.inf).scatter_reduce(0, owner, highest, "amax")[owner][:, None]
    return ((relevance - least + 1e-6) / (most - least)).where(most > least, 1.0)
