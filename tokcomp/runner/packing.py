"""Attention of later passes over a cache whose heads hold different numbers of entries, packed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tokcomp.errors import UnsupportedError
from tokcomp.ops.packed import packed_attention
from tokcomp.runner.passes import Pass

__all__ = ["attend_packed"]

_BEYOND_SOFTMAX = ("softcap", "s_aux", "sliding_window")
"""Options of an attention call that change more than its logits' scale."""


def attend_packed(run: Pass, query: Tensor, key: Tensor, value: Tensor, scale: float,
                  options: dict[str, Any]) -> Tensor | None:  # fmt: skip
    """The attention output ``[b, h, t, d]`` of a layer whose earlier entries are packed; None where none are.

    Raises:
        UnsupportedError: the model's attention is more than a softmax over all entries.
    """
    packed = None if run.prefill else run.packed
    if packed is None:
        return None
    more = [name for name in _BEYOND_SOFTMAX if options.get(name) is not None]
    if more:
        raise UnsupportedError(
            f"this layer's attention has {', '.join(more)}, which a cache with budgets per head cannot follow: use a policy "
            "with one budget for all heads"
        )
    return packed_attention(query, packed, key, value, scale=scale)
