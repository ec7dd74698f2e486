"""Attention masks for sequences whose layers have different lengths, in the form that the model's implementation takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, overload

import torch
from torch import Tensor

from tokcomp.errors import UnsupportedError
from tokcomp.runner.tables import constant

__all__ = ["Visibility", "layer_mask", "over_heads", "stand_in"]


@dataclass(frozen=True)
class Visibility:
    """Which keys of one layer its queries may see, beyond "those that came before".

    Attributes:
        length: keys of the layer; the queries are the last of them.
        valid: keys that are no padding ``[b, l]`` or, per key/value head, ``[b, g, l]``; None: all.
        window: a query sees the keys that stood fewer than this many columns before it in the *uncompressed* sequence, so
            that dropping tokens never lets it see further; None: however far.
        columns: those columns ``[b|1, 1|g, l]``, where there is a window.
        blocks: ``[b, l]`` keys with the same number see each other in both directions (an image, a prefix); -1: none does.
        through: blocks see each other beyond the window too (PaliGemma); else the window binds them (Gemma 3).
    """

    length: int
    valid: Tensor | None = None
    window: int | None = None
    columns: Tensor | None = None
    blocks: Tensor | None = None
    through: bool = False

    @property
    def plain(self) -> bool:
        """Causal order is all there is."""
        return self.valid is None and self.window is None and self.blocks is None

    def rows(self, index: Tensor) -> Tensor:
        """What the queries at the keys ``index`` ``[r]`` or ``[b, r]`` see: bool ``[b|1, 1|g, r, l]``."""
        at = index if index.dim() == 2 else index[None]
        return self._seen(at, torch.arange(self.length, device=index.device))

    def _seen(self, at: Tensor, columns: Tensor) -> Tensor:
        seen = (columns <= at[..., None])[:, None]
        near, same = self._near(at), self._same_block(at)
        if same is not None and not (self.through and near is not None):
            seen = seen | same
        if near is not None:
            seen = seen & near
        if same is not None and self.through and near is not None:
            seen = seen | same
        if self.valid is not None:
            seen = seen & (self.valid[:, None, None] if self.valid.dim() == 2 else self.valid[:, :, None])
        return seen

    def last(self, rows: int, device: torch.device) -> Tensor | None:
        """What the last ``rows`` queries see ``[b|1, 1|g, rows, l]``; None where that is everything."""
        if rows > 1 or self.window is not None:
            columns = torch.arange(self.length, device=device)
            return self._seen(columns[None, self.length - rows :], columns)
        if self.valid is None:
            return None
        return self.valid[:, None, None] if self.valid.dim() == 2 else self.valid[:, :, None]

    def _near(self, at: Tensor) -> Tensor | None:
        if self.window is None:
            return None
        assert self.columns is not None
        b, g, _ = self.columns.shape
        columns = self.columns.expand(max(b, at.shape[0]), -1, -1)
        own = columns.gather(2, at[:, None].expand(columns.shape[0], g, -1))
        return columns[:, :, None] > own[..., None] - self.window

    def _same_block(self, at: Tensor) -> Tensor | None:
        if self.blocks is None:
            return None
        own = self.blocks.gather(1, at.expand(self.blocks.shape[0], -1))
        return ((self.blocks[:, None] == own[..., None]) & (own >= 0)[..., None])[:, None]


@cache
def stand_in(device: torch.device) -> Tensor:
    """What keeps a model from making a mask of its own where every layer is given one: a mask of four dimensions."""
    with torch.inference_mode(False):  # a tensor that every later mode may read
        return torch.zeros(1, 1, 1, 1, device=device)


@overload
def over_heads(mask: Tensor, heads: int) -> Tensor: ...
@overload
def over_heads(mask: None, heads: int) -> None: ...
@overload
def over_heads(mask: Tensor | None, heads: int) -> Tensor | None: ...
def over_heads(mask: Tensor | None, heads: int) -> Tensor | None:
    """A mask per key/value head ``[b, g, r, l]`` as one per query head; others stay as they are."""
    if mask is None or mask.shape[1] in (1, heads):
        return mask
    return mask.repeat_interleave(heads // mask.shape[1], dim=1)


def layer_mask(implementation: str, rows: int, sees: Visibility, *, heads: int, dtype: torch.dtype, device: torch.device,
               masked: bool = False) -> Any:  # fmt: skip
    """The ``attention_mask`` of one decoder layer whose last ``rows`` keys are its queries.

    None where the implementation's own causal rule is right; a 2-D padding mask for flash attention; else additive
    ``[b, 1|h, rows, length]``. ``masked``: the layer has no causal rule of its own.

    Raises:
        UnsupportedError: flash attention, which knows padding and causal order only.
    """
    flash = "flash" in implementation
    if flash and (sees.window is not None or sees.blocks is not None):
        what = "the window over dropped tokens" if sees.window is not None else "blocks that attend in both directions"
        raise UnsupportedError(
            f"{implementation} cannot express {what}: load the model with attn_implementation='sdpa'"
        )
    own_rule = not masked and (flash or (rows == sees.length and implementation == "sdpa"))
    if sees.plain and (rows == 1 or own_rule):
        return None
    if flash:
        return sees.valid
    mask = over_heads(sees.last(rows, device), heads)
    if mask is None:
        return None
    return _additive(mask, dtype, -torch.inf if implementation == "sdpa" else torch.finfo(dtype).min)


def _additive(mask: Tensor, dtype: torch.dtype, hidden: float) -> Tensor:
    """``mask`` as what is added to the logits. What SDPA would else make out of the bool mask in every layer is laid out as the
    kernels want it (their ``preprocess_mask``): every row begins at a multiple of 8 numbers."""
    length = mask.shape[-1]
    room = torch.empty(*mask.shape[:-1], -(-length // 8) * 8, dtype=dtype, device=mask.device)[..., :length]
    shown, none = (constant(value, dtype, mask.device) for value in (0.0, hidden))
    return torch.where(mask, shown, none, out=room)
