"""Cache entries without padding where heads hold different numbers of them, and attention over them.

Notation: b batch, g key/value heads, h query heads, t query rows, d head size; s = b * g segments, one per sample and head
(sample-major).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Packed", "packed_attention"]

_PAGE = 16


@dataclass(frozen=True)
class _Pages:
    """Part of a packed segment: pieces of one size, each of one segment.

    Attributes:
        start: first entry of the part in the packed tensors. ``size``: entries of a page.
        owner: ``[p]`` segment of each page, ascending.
        table: ``[s, m]`` the pages of each segment, p where it has no more.
    """

    start: int
    size: int
    owner: Tensor
    table: Tensor

    def of(self, packed: Tensor) -> Tensor:
        """This part of a packed tensor, as a view ``[p, size, d]``."""
        count = self.owner.shape[0]
        return packed[self.start : self.start + count * self.size].view(count, self.size, packed.shape[-1])

    def gathered(self, values: Tensor, filler: float) -> Tensor:
        """``values`` ``[p, ...]`` by segment ``[s, m, ...]``. No atomic additions follow, so sums have one order."""
        return torch.cat([values, values.new_full((1, *values.shape[1:]), filler)])[self.table]


@dataclass(frozen=True)
class Packed:
    """Keys and values of segments of different lengths, exactly as many rows as there are entries.

    Each segment is cut into pages of 16 entries, the rest of it into pages of one. The pages of 16 of all segments stand
    first, so that attention is a batched matrix product over views: nothing is padded and nothing copied.

    Attributes:
        keys, values: ``[sum of counts, d]``.
        present: ``[b, g, k]`` which of the padded rows that were packed were entries; its sums are the counts.
    """

    keys: Tensor
    values: Tensor
    present: Tensor
    parts: tuple[_Pages, ...]

    @classmethod
    def pack(cls, keys: Tensor, values: Tensor, present: Tensor) -> Packed:
        """Pack the entries of ``keys`` and ``values`` ``[b, g, k, d]`` where ``present`` ``[b, g, k]`` says so."""
        counts = present.sum(dim=-1).flatten()  # (s,)
        whole = present & (present.cumsum(dim=-1) <= (present.sum(dim=-1, keepdim=True) // _PAGE * _PAGE))
        order = torch.cat([whole.flatten().nonzero()[:, 0], (present & ~whole).flatten().nonzero()[:, 0]])
        full = _pages(counts // _PAGE, size=_PAGE, start=0)
        rest = _pages(counts % _PAGE, size=1, start=full.owner.shape[0] * _PAGE)
        parts = tuple(part for part in (full, rest) if part.owner.shape[0])
        return cls(keys.flatten(0, 2)[order], values.flatten(0, 2)[order], present, parts)

    @property
    def width(self) -> int:
        """Padded rows of a segment, as they were packed."""
        return self.present.shape[-1]

    def unpack(self) -> tuple[Tensor, Tensor]:
        """Keys and values ``[b, g, k, d]`` as they were packed; 0 where no entry is."""
        at = self.present.cumsum(dim=-1) - 1  # (b, g, k): rank of each entry in its segment
        counts = self.present.sum(dim=-1, keepdim=True)
        pages, rest = counts // _PAGE, counts % _PAGE
        body = (pages.flatten().cumsum(0).view_as(pages) - pages) * _PAGE
        tail = pages.sum() * _PAGE + rest.flatten().cumsum(0).view_as(rest) - rest
        where = torch.where(at < pages * _PAGE, body + at, tail + at - pages * _PAGE).clamp(min=0)
        missing = ~self.present[..., None]
        return self.keys[where].masked_fill(missing, 0.0), self.values[where].masked_fill(missing, 0.0)

    def rows(self, change: Callable[[Tensor], Tensor]) -> Packed:
        """The samples that ``change`` picks along the first axis."""
        keys, values = self.unpack()
        return Packed.pack(change(keys), change(values), change(self.present))


def _pages(counts: Tensor, *, size: int, start: int) -> _Pages:
    """Pages of segments that have ``counts`` ``[s]`` of them."""
    owner = torch.arange(counts.shape[0], device=counts.device).repeat_interleave(counts)
    most = int(counts.max()) if counts.numel() else 0
    number = torch.arange(most, device=counts.device)
    first = (counts.cumsum(0) - counts)[:, None]
    table = (first + number).where(number < counts[:, None], owner.shape[0])
    return _Pages(start=start, size=size, owner=owner, table=table)


def packed_attention(query: Tensor, packed: Packed, keys: Tensor, values: Tensor, *, scale: float) -> Tensor:
    """Attention over packed entries, which every row sees, and over the entries ``keys`` that came after them, causally.

    The two are parts of one softmax, in float32: both parts' logits are shifted by their common maximum, and their
    weighted sums are added before the division, which is what merging by log-sum-exp comes to.

    Args:
        query: rotated queries ``[b, h, t, d]``, the rows of the last t entries of ``keys``.
        packed: the entries that came before.
        keys, values: ``[b, g, n, d]``, rows without padding; n may be 0.
        scale: factor of the logits.

    Returns:
        ``[b, h, t, d]`` in the dtype of ``query``.
    """
    b, h, t, d = query.shape
    g, n = keys.shape[1], keys.shape[2]
    rows = query.reshape(b * g, h // g * t, d)  # (s, h / g * t, d)
    later = (rows @ keys.reshape(b * g, n, d).transpose(-1, -2)).float() * scale  # (s, h / g * t, n)
    if t > 1:
        last = torch.arange(n - t, n, device=query.device).repeat(h // g)
        later = later.masked_fill(torch.arange(n, device=query.device) > last[:, None], -torch.inf)
    logits = [(rows[part.owner] @ part.of(packed.keys).transpose(-1, -2)).float() * scale for part in packed.parts]
    highest = later.amax(dim=-1) if n else later.new_full(later.shape[:-1], -torch.inf)  # (s, h / g * t)
    for part, own in zip(packed.parts, logits, strict=True):
        highest = highest.maximum(part.gathered(own.amax(dim=-1), -torch.inf).amax(dim=1))
    weight = (later - highest[..., None]).exp()
    total = weight.sum(dim=-1)
    output = (weight.to(values.dtype) @ values.reshape(b * g, n, d)).float()
    for part, own in zip(packed.parts, logits, strict=True):
        weight = (own - highest[part.owner][..., None]).exp()  # (p, h / g * t, size)
        total = total + part.gathered(weight.sum(dim=-1), 0.0).sum(dim=1)
        summed = (weight.to(values.dtype) @ part.of(packed.values)).float()
        output = output + part.gathered(summed, 0.0).sum(dim=1)
    return (output / total[..., None]).view(b, h, t, d).to(query.dtype)
