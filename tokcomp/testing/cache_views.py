"""Fabricated views of the cache stage: random caches with every signal that a policy declares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tokcomp.ops.rotary import mean_rotation
from tokcomp.plugin_signals import extra_names, made_up
from tokcomp.stages import CachePolicy
from tokcomp.types import CacheView, Selection, Signal

__all__ = ["Rows", "alone", "kept", "random_view", "rotation", "tensor_fields"]

HEADS, WIDTH = 2, 4


def random_view(counts: Sequence[int], *, policy: CachePolicy | None = None, layer: int = 3, depth: int = 8, seed: int = 0,
                dtype: torch.dtype = torch.float32, protected: float = 0.0, per_head: bool = False, heads: int = HEADS,
                generated: int = 0) -> CacheView:  # fmt: skip
    """A batch of caches with ``counts`` entries each; padding stands anywhere and holds what a careless policy would trip
    over.

    Args:
        policy: gets the signals that it declares, and no others; None: all of them.
        protected: share of the vision entries that are marked.
        per_head: every head holds entries of its own, as after a step of a per-head policy.
    """
    generator = torch.Generator().manual_seed(seed)
    b, n = len(counts), max(counts)
    shape = (b, heads, n)
    valid, index = _slots(counts, heads, per_head, generator)
    vision = valid & (index >= 2) & (index < torch.tensor(counts)[:, None, None] * 3 // 4)
    marks, alive = (_by_index(torch.rand(b, n + 5, generator=generator), index) for _ in range(2))
    received = torch.rand(shape, generator=generator).masked_fill(~valid, 0.0)
    needs = frozenset(Signal) if policy is None else policy.signals()
    filler = ~valid[..., None]
    rows = Rows.random(valid, generator) if Signal.ATTENTION_ROWS in needs else None
    queries = torch.randn(b, 2 * heads, n, WIDTH, generator=generator).masked_fill(filler.repeat_interleave(2, 1), 1e4)
    return CacheView(
        layer=layer,
        depth=depth,
        keys=torch.randn(*shape, WIDTH, generator=generator).masked_fill(filler, 1e4).to(dtype),
        values=torch.randn(*shape, WIDTH, generator=generator).masked_fill(filler, 1e4).to(dtype),
        valid=valid,
        index=index,
        vision=vision,
        protected=vision & (marks < protected),
        prompt=torch.tensor(counts),
        after=torch.tensor([count - min(count, count * 3 // 4) for count in counts]),
        initial=vision[:, 0].sum(dim=-1),
        generated=generated,
        memory={},
        group=2,
        _extra=made_up(needs, "cache", shape, generator),
        _declared=extra_names(needs),
        _received=received if Signal.RECEIVED_ATTENTION in needs else None,
        _attention_rows=rows,
        _queries=queries if Signal.QUERIES in needs else None,
        _rotation=rotation(max(counts)) if Signal.QUERIES in needs else None,
        _surveyed=torch.rand(b, depth, generator=generator) if Signal.SURVEY in needs else None,
        _final=valid & vision & (alive < 0.6) if Signal.FINAL_TOKENS in needs else None,
        _digest=torch.randint(-(2**62), 2**62, (b,), generator=generator) if Signal.DIGEST in needs else None,
    )


def _slots(counts: Sequence[int], heads: int, per_head: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which slots hold an entry, and which one, ``[b, g, n]`` each."""
    n = max(counts)
    valid, index = torch.zeros(len(counts), heads, n, dtype=torch.bool), torch.full((len(counts), heads, n), -1)
    for row, count in enumerate(counts):
        for head in range(heads):
            if head == 0 or per_head:
                columns = torch.randperm(n, generator=generator)[:count].sort().values
                entries = torch.randperm(count + 5, generator=generator)[:count].sort().values
            valid[row, head, columns] = True
            index[row, head, columns] = entries
    return valid, index


def _by_index(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index.clamp(min=0).flatten(1)).view(index.shape)


def tensor_fields(view: CacheView) -> dict[str, Tensor]:
    """All tensors of a view by field name."""
    values = {field.name: getattr(view, field.name) for field in dataclasses.fields(view)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def alone(view: CacheView, row: int) -> CacheView:
    """One sample of a batch (with one set of columns for all heads) as it would come without the others."""
    valid = view.valid[row, 0]
    parts: dict[str, Any] = {}
    for name, value in tensor_fields(view).items():
        part = value[row : row + 1]
        parts[name] = (
            part if name in ("_digest", "prompt", "after", "initial", "_surveyed") else part[:, :, valid]
        ).clone()
    rows = view._attention_rows
    return dataclasses.replace(
        view, **parts, memory={}, _attention_rows=rows.alone(row, valid) if isinstance(rows, Rows) else None
    )


@dataclasses.dataclass(frozen=True)
class Rows:
    """Query rows, two at a time."""

    attention: Tensor
    real: Tensor

    @classmethod
    def random(cls, valid: Tensor, generator: torch.Generator) -> Rows:
        """Random rows ``[b, 4, 5, l]`` over the valid entries; the first of every other sample is padding."""
        seen = valid[:, 0, None, None]
        logits = 4 * torch.randn(len(valid), 4, 5, valid.shape[2], generator=generator)
        real = torch.ones(len(valid), 5, dtype=torch.bool)
        real[1::2, 0] = False
        return cls(logits.masked_fill(~seen, -torch.inf).softmax(dim=-1), real)

    def alone(self, row: int, valid: Tensor) -> Rows:
        return Rows(self.attention[row : row + 1, ..., valid], self.real[row : row + 1])

    def with_later(self, seed: int) -> Rows:
        """Other contents in the rows that are not real."""
        other = torch.rand(self.attention.shape, generator=torch.Generator().manual_seed(seed))
        return Rows(self.attention.where(self.real[:, None, :, None], 20 * other), self.real)

    def __call__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.attention.split(2, dim=2), self.real.split(2, dim=1), strict=True)


def rotation(start: int, theta: float = 10000.0, width: int = WIDTH) -> Callable[[int], Tensor]:
    """The mean rotation to coming positions, as views have it."""
    inv_freq = theta ** -(torch.arange(0, width, 2) / width)
    return lambda steps: mean_rotation(torch.tensor([start]), steps, inv_freq, width)


def kept(selection: Selection | None, view: CacheView, row: int) -> list[list[int]]:
    """The entries that one sample keeps in every head, as positions in the uncompressed sequence."""
    index, valid = view.index[row], view.valid[row]
    if selection is None:
        return [index[head, valid[head]].tolist() for head in range(len(index))]
    keep = selection.keep if selection.keep.dim() == 3 else selection.keep[:, None].expand(-1, len(index), -1)
    return [index[head, keep[row, head][keep[row, head] >= 0]].tolist() for head in range(len(index))]
