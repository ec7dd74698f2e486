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

__all__ = ["fits", "gathered", "received", "turned"]

_MOST_BYTES = 64 * 2**20


def fits(entries: Tensor, layers: int) -> bool:
    """Whether the entries of ``layers`` layers like this one may be laid side by side."""
    return layers > 1 and layers * entries.nbytes <= _MOST_BYTES


def gathered(entries: Sequence[Tensor], index: Tensor) -> Sequence[Tensor]:
    """Of each layer's entries ``[b, g, l, d]`` those at ``index`` ``[layers * b, g, k]``."""
    b = entries[0].shape[0]
    if fits(entries[0], len(entries)):
        return gather_entries(torch.cat(list(entries)), index).split(b)
    return [gather_entries(each, part) for each, part in zip(entries, index.split(b), strict=True)]


def received(queries: Sequence[Tensor], keys: Sequence[Tensor], scale: float) -> Tensor:
    """What every entry receives from the new token's row of its layer, summed over the query heads of its group
    ``[layers * b, g, l]``; queries ``[b, h, 1, d]``, keys ``[b, g, l, d]``."""
    query, key = torch.cat(list(queries)), torch.cat(list(keys))
    attention = attention_rows(query, key, scale=scale)
    return attention.view(key.shape[0], key.shape[1], -1, key.shape[2]).sum(dim=2)


def turned(keys: Sequence[Tensor], cos: Tensor, sin: Tensor, *, interleaved: bool) -> Sequence[Tensor]:
    """Each layer's keys ``[b, g, k, d]`` turned by the same angles, see :func:`tokcomp.ops.rotary.turn`."""
    if fits(keys[0], len(keys)):
        return turn(torch.stack(list(keys)), cos, sin, interleaved=interleaved).unbind()
    return [turn(each, cos, sin, interleaved=interleaved) for each in keys]
