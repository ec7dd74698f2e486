"""Vision features that a decoder adds to the states of vision tokens after its first layers (DeepStack, arXiv 2406.04334)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tokcomp.runner.request import Sequence

__all__ = ["Deepstack", "taken_over"]

_MASK, _FEATURES = "visual_pos_masks", "deepstack_visual_embeds"


@dataclass(frozen=True)
class Deepstack:
    """The features of one prompt; they follow their tokens, whatever was dropped or moved before the layer that adds them.

    Attributes:
        rows: which row of the features belongs to each column of the prompt ``[b, l]``, -1 for text.
        features: per layer, from the first on, the features of all placeholders in prompt order ``[v, d]``.
    """

    rows: Tensor
    features: tuple[Tensor, ...]

    def add(self, layer: int, hidden: Tensor, sequence: Sequence | None) -> Tensor:
        """The output of ``layer`` ``[b, k, d]``, whose tokens are those of ``sequence`` (None: all columns), with its features.

        A merged token takes the features of the token that it stands at.
        """
        rows = self.rows if sequence is None else self.rows.to(hidden.device).gather(1, sequence.index)
        there = rows >= 0 if sequence is None or sequence.valid is None else (rows >= 0) & sequence.valid
        features = self.features[layer].to(hidden.device, hidden.dtype)
        added = features[rows.clamp(min=0)]  # (b, k, d)
        return hidden + added.masked_fill(~there[..., None], 0.0)


def taken_over(kwargs: dict[str, Any]) -> tuple[dict[str, Any], Deepstack | None]:
    """The decoder's arguments without the features that it would add itself, and these features."""
    mask, features = kwargs.get(_MASK), kwargs.get(_FEATURES)
    if mask is None or not features:
        return kwargs, None
    rows = (mask.flatten().long().cumsum(0) - 1).view(mask.shape).masked_fill(~mask, -1)
    return {**kwargs, _MASK: None, _FEATURES: None}, Deepstack(rows, tuple(features))
