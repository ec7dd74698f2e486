"""Does to the entries of several cache layers in one call what would else be a call, and a kernel launch, per layer.

It copies the entries once more, so large ones are done layer by layer: there the launches are not what costs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokcomp.ops.rotary import turn
from tokcomp.ops.scores import attention_rows
from tokcomp.runner.apply import gather_entries
from tokcomp.runner.masks import over_heads

__all__ = ["fits", "gathered", "received", "turned"]

_MOST_BYTES = 64 * 2**20


def fits(entries: Tensor, layers: int) -> bool:
    """Whether the entries of ``layers`` layers like this one may be laid side by side."""
    return layers > 1 and layers * entries.nbytes <= _MOST_BYTES


def gathered(entries: Sequence[Tensor], index: Tensor, whole: Tensor | None = None) -> Sequence[Tensor]:
    """Of each layer's entries ``[b, g, l, d]`` those at ``index`` ``[layers * b, g, k]``; ``whole``: the entries of all layers,
    where they have been laid side by side."""
    b = entries[0].shape[0]
    if whole is None and fits(entries[0], len(entries)):
        whole = torch.cat(list(entries))
    if whole is not None:
        return gather_entries(whole, index).split(b)
    return [gather_entries(each, part) for each, part in zip(entries, index.split(b), strict=True)]


def received(query: Tensor, key: Tensor, scale: float, valid: Tensor | None) -> Tensor:
    """What every entry receives from the new token's row of its layer, summed over the query heads of its group
    ``[layers * b, g, l]``; queries ``[layers * b, h, 1, d]``, keys ``[layers * b, g, l, d]``, ``valid`` ``[layers * b, g, l]``
    which of these are no padding, None: all."""
    mask = None if valid is None else over_heads(valid[:, :, None], query.shape[1])
    attention = attention_rows(query, key, scale=scale, mask=mask)
    return attention.view(key.shape[0], key.shape[1], -1, key.shape[2]).sum(dim=2)


def turned(keys: Sequence[Tensor], cos: Tensor, sin: Tensor, *, interleaved: bool) -> Sequence[Tensor]:
    """Each layer's keys ``[b, g, k, d]`` turned by the same angles, see :func:`tokcomp.ops.rotary.turn`."""
    if fits(keys[0], len(keys)):
        return turn(torch.stack(list(keys)), cos, sin, interleaved=interleaved).unbind()
    return [turn(each, cos, sin, interleaved=interleaved) for each in keys]
