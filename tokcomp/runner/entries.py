"""What a cache policy is told about the entries of one layer, or of several at once as if they were samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokcomp.runner.cache import CompressedLayer
from tokcomp.runner.tables import filled

__all__ = ["EntryTables"]


@dataclass(frozen=True)
class EntryTables:
    """Tables of the entries of layers that hold equally many, one layer's samples after the other's.

    Attributes:
        index: column of each entry in the uncompressed sequence ``[b, g, l]``.
        valid: ``[b, g, l]``. padded: whether any of it may be False.
        vision, protected: ``[b, g, l]`` bool.
        prompt, after: tokens of each sample's prompts, and those after the last image of its latest one ``[b]``.
        digest: ``[b]`` or None.
    """

    index: Tensor
    valid: Tensor
    padded: bool
    vision: Tensor
    protected: Tensor
    prompt: Tensor
    after: Tensor
    digest: Tensor | None

    @classmethod
    def of(cls, layers: Sequence[CompressedLayer]) -> EntryTables:
        """The tables of ``layers``, which hold equally many entries, all with padding or all without."""
        first = layers[0]
        request, heads, length = first.request, first.keys.shape[1], first.length
        index = _stacked([layer.index for layer in layers if layer.index is not None], first.keys.shape[0], heads)
        if index.shape[-1] < length:
            tail = torch.arange(first.seen - (length - index.shape[-1]), first.seen, device=index.device)
            index = torch.cat([index, tail.expand(*index.shape[:-1], -1)], dim=-1)
        valid, padded = torch.ones_like(index, dtype=torch.bool), first.valid is not None
        if padded:
            masks = [layer.valid for layer in layers if layer.valid is not None]
            valid = filled(_stacked(masks, first.keys.shape[0], heads), length)
        rows = first.rows if len(layers) == 1 else torch.cat([layer.rows for layer in layers if layer.rows is not None])
        return cls(
            index=index,
            valid=valid,
            padded=padded,
            vision=column(request.vision[rows], index) & valid,
            protected=column(request.protected[rows], index) & valid,
            prompt=request.lengths[rows],
            after=request.prompt.after[rows],
            digest=None if request.prompt.digest is None else request.prompt.digest[rows],
        )

    def latest(self, before: int, prompt: Tensor) -> EntryTables:
        """Those of the entries behind the first ``before``, all of the latest prompt, whose lengths are ``prompt`` ``[b]``."""
        names = "index", "valid", "vision", "protected"
        return replace(self, prompt=prompt, **{name: getattr(self, name)[..., before:] for name in names})


def _stacked(tables: Sequence[Tensor], batch: int, heads: int) -> Tensor:
    """Tables ``[b|1, g|1, m]`` of several layers as one ``[layers * b, g, m]``."""
    tables = [table.expand(batch, heads, -1) for table in tables]
    return tables[0] if len(tables) == 1 else torch.cat(tables)


def column(values: Tensor, index: Tensor) -> Tensor:
    """``values`` ``[b|1, l0]`` of the prompt at ``index`` ``[b|1, g, l]``; False for tokens that came after the prompt."""
    index = index.expand(max(index.shape[0], values.shape[0]), -1, -1)
    flat = index.flatten(1)
    inside = flat < values.shape[1]
    picked = values.expand(flat.shape[0], -1).gather(1, flat.clamp(max=values.shape[1] - 1)) & inside
    return picked.view(index.shape)
