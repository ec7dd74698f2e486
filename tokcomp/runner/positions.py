"""Position ids: one number per token ``[b, l]``, or planes of numbers ``[p, b, l]`` for multimodal rotary positions.

A decoder with multimodal rotary positions (Qwen2-VL, arXiv 2409.12191) turns some frequencies by a token's time, some by
its row and some by its column; text has the same number in all planes. ``b`` may be 1 for all samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokcomp.errors import UnsupportedError

__all__ = ["close_up", "in_planes", "next_after", "take_columns"]


def in_planes(position_ids: Tensor, planes: int) -> Tensor:
    """The rotary positions among what a model was called with: ``[b|1, l]`` where it has one plane, else
    ``[planes, b|1, l]``.

    Ids of two dimensions serve all planes. A plane more than the decoder turns by stands first and numbers the text;
    transformers tells packed sequences by it, and it is left out here.

    Raises:
        UnsupportedError: another number of planes or dimensions.
    """
    shape = position_ids.shape
    if planes == 1 and position_ids.dim() == 2:
        return position_ids
    if planes > 1 and position_ids.dim() == 2:
        return position_ids[None].expand(planes, -1, -1)
    if planes > 1 and position_ids.dim() == 3 and shape[0] in (1, planes, planes + 1):
        return position_ids[1:] if shape[0] == planes + 1 else position_ids.expand(planes, -1, -1)
    raise UnsupportedError(
        f"position_ids of shape {tuple(shape)} do not fit: this decoder takes "
        + ("[batch, length]" if planes == 1 else f"[batch, length] or [{planes}, batch, length]")
    )


def next_after(positions: Tensor) -> Tensor:
    """Position of the token that follows ``[b|1]``: one beyond the largest of all columns and planes (padding on the right has
    small ones)."""
    highest = positions.amax(dim=-1) if positions.shape[-1] > 1 else positions[..., 0]
    return (highest if positions.dim() == 2 else highest.amax(dim=0)) + 1


def take_columns(positions: Tensor, index: Tensor) -> Tensor:
    """Columns ``index`` ``[b, k]`` of ``positions`` ``[b|1, l]`` or ``[p, b|1, l]``, in every plane."""
    planes = positions.shape[:-2]
    own = positions.expand(*planes, index.shape[0], positions.shape[-1])
    return own.gather(-1, index.expand(*planes, *index.shape))


def close_up(positions: Tensor, used: Tensor, kept: Tensor, until: Tensor) -> tuple[Tensor, Tensor]:
    """Number the kept tokens anew: position values that no token has any more are closed up.

    What "renumber" means where positions have planes. A value v becomes v minus the number of smaller values that some
    token had, in any plane, before and that none has now. All planes share one such map, so text keeps one number in all
    planes, survivors keep their rows and columns relative to each other, text follows an image one beyond its largest
    number as before, and gaps that the model itself left (frames of a video lie seconds apart) stay. Nothing dropped,
    nothing changes; with a single plane of 0, 1, 2... the survivors are numbered 0, 1, 2...

    Args:
        positions: ``[p, b|1, l]``. ``used``: tokens that are no padding, before ``[b, l]``; ``kept``: those that stay.
        until: position of the token that comes next, before renumbering ``[b]``.

    Returns:
        The new positions ``[p, b, l]`` (of tokens that do not stay: meaningless) and by how much what follows moves down
        ``[b]``.
    """
    planes, (b, length) = positions.shape[0], used.shape
    flat = positions.expand(planes, b, length).transpose(0, 1).reshape(b, planes * length)
    values, order = flat.sort(dim=1, stable=True)
    first = torch.ones_like(values, dtype=torch.bool)
    first[:, 1:] = values[:, 1:] != values[:, :-1]
    group = first.long().cumsum(dim=1) - 1
    zeros = torch.zeros_like(values)

    def held(tokens: Tensor) -> Tensor:
        marks = tokens.repeat(1, planes).gather(1, order).to(values.dtype)
        return zeros.scatter_reduce(1, group, marks, "amax") > 0

    gone = held(used) & ~held(kept & used)  # by distinct value, ascending
    smaller = gone.long().cumsum(dim=1) - gone.long()
    moved = flat.scatter(1, order, values - smaller.gather(1, group))
    lag = (gone & (zeros.scatter(1, group, values) < until[:, None])).sum(dim=1)
    return moved.view(b, planes, length).transpose(0, 1), lag
