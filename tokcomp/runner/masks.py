"""Attention masks for sequences whose layers have different lengths, in the form that the model's implementation takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["causal_rows", "layer_mask"]


def causal_rows(rows: int, length: int, valid: Tensor | None, device: torch.device) -> Tensor | None:
    """Which of ``length`` keys the last ``rows`` queries may see: bool ``[b|1, 1, rows, length]``, None where all may.

    Args:
        valid: keys that are no padding ``[b, length]`` or, per key/value head, ``[b, g, length]``; None: all.
    """
    seen: Tensor | None = None
    if rows > 1:
        last = torch.arange(length - rows, length, device=device)
        seen = (torch.arange(length, device=device) <= last[:, None])[None, None]
    if valid is None:
        return seen
    keys = valid[:, None, None] if valid.dim() == 2 else valid[:, :, None]
    return keys.expand(-1, -1, rows, -1) if seen is None else keys & seen


def layer_mask(implementation: str, rows: int, length: int, valid: Tensor | None, *, heads: int, dtype: torch.dtype,
               device: torch.device) -> Any:  # fmt: skip
    """The ``attention_mask`` of one decoder layer with ``rows`` queries and ``length`` keys (its cache included).

    None where the implementation's own causal rule is right; a 2-D padding mask for flash attention; else bool (SDPA)
    or additive (eager) ``[b, 1|h, rows, length]``.
    """
    flash = "flash" in implementation
    if valid is None and (flash or rows == 1 or (rows == length and implementation == "sdpa")):
        return None
    if flash:
        return valid
    mask = causal_rows(rows, length, valid, device)
    if mask is None:
        return None
    if mask.shape[1] not in (1, heads):
        mask = mask.repeat_interleave(heads // mask.shape[1], dim=1)
    if implementation == "sdpa":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill_(~mask, torch.finfo(dtype).min)
