"""Fabricated views of the vision stage: random images with every signal that a reducer declares."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokcomp.plugin_signals import extra_names, made_up
from tokcomp.stages import VisionReducer
from tokcomp.types import Selection, Signal, Site, VisionView

__all__ = ["alone", "decision", "random_view", "tensor_fields"]

HEADS, WIDTH, HEAD_WIDTH = 2, 8, 4


def random_view(counts: Sequence[int], grid: tuple[int, int], *, reducer: VisionReducer | None = None,
                site: Site | None = None, depth: int = 4, n_prefix: int = 1, seed: int = 0,
                dtype: torch.dtype = torch.float32, merged: bool = False, protected: bool | float = False,
                has_cls: bool = True) -> VisionView:  # fmt: skip
    """A batch of images with ``counts`` tokens each out of one grid.

    Neighbouring patches resemble each other. A row of fewer tokens than the grid has patches holds a random choice of
    them in raster order; padding holds what a careless strategy would trip over (large values, patch 0).

    Args:
        reducer: gets the signals that it declares, of the blocks that it looks at, and no others; None: all of them.
        merged: give some tokens a size above 1.
        protected: mark some tokens, a fifth of them or this share.
        has_cls: False: a tower without CLS token, which shows the attention received in place of the CLS token's.
    """
    generator = torch.Generator().manual_seed(seed)
    b, n, patches = len(counts), max(counts), grid[0] * grid[1]
    valid, origin = _places(counts, patches, generator)
    region = torch.div(origin, max(1, patches // 3), rounding_mode="floor")
    centres = torch.randn(8, WIDTH, generator=generator)
    tokens = centres[region] + 0.45 * torch.randn(b, n, WIDTH, generator=generator)
    sizes = torch.ones(b, n)
    if merged:
        sizes += torch.randint(0, 3, (b, n), generator=generator)
    share = 0.2 if protected is True else float(protected)
    marks = torch.rand(b, n, generator=generator) < share if protected else torch.zeros(b, n, dtype=torch.bool)
    signals = _block_signals(valid, has_cls, dtype, generator)
    view = VisionView(
        site=site or Site.features(),
        depth=depth,
        tokens=_padded(tokens, valid, 1e4).to(dtype),
        valid=valid,
        sizes=_padded(sizes[..., None], valid, 0.0)[..., 0],
        origin=origin,
        protected=marks & valid,
        padded=len(set(counts)) > 1,
        marked=bool(protected),
        grid=grid,
        n_prefix=n_prefix if has_cls else 0,
        has_cls=has_cls,
        **signals,
        _elsewhere=dict.fromkeys(range(depth), signals),
        _text_relevance=_padded(torch.rand(b, n, 1, generator=generator), valid, 1e4)[..., 0],
        _cls_token=torch.randn(b, WIDTH, generator=generator).to(dtype) if has_cls else None,
        _digest=torch.randint(-(2**62), 2**62, (b,), generator=generator),
    )
    return view if reducer is None else _declared(view, reducer)


def _places(counts: Sequence[int], patches: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which columns hold a token, and of which patch, ``[b, n]`` each."""
    valid = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    origin = torch.zeros(valid.shape, dtype=torch.long)
    for row, count in enumerate(counts):
        origin[row, :count] = torch.randperm(patches, generator=generator)[:count].sort().values
    return valid, origin


def _block_signals(valid: Tensor, has_cls: bool, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Any]:
    """What a block of the tower shows of its attention."""
    b, n = valid.shape
    attention = (1.5 * torch.randn(b, HEADS, n, generator=generator)).softmax(-1)
    return {
        "_keys": _padded(torch.randn(b, n, HEAD_WIDTH, generator=generator), valid, 1e4).to(dtype),
        "_cls_attention": _rows(attention, has_cls).masked_fill(~valid[:, None], 0.0),
        "_unsplit_attention": attention.mean(1).masked_fill(~valid, 0.0),
        "_unsplit_keys": _padded(torch.randn(b, n, HEADS * HEAD_WIDTH, generator=generator), valid, 1e4).to(dtype),
    }


BLOCK_SIGNALS = {
    "_keys": Signal.KEYS,
    "_cls_attention": Signal.CLS_ATTENTION,
    "_unsplit_attention": Signal.UNSPLIT_ATTENTION,
    "_unsplit_keys": Signal.UNSPLIT_KEYS,
}
"""Fields of the view that a block of the tower fills."""


def _declared(view: VisionView, reducer: VisionReducer) -> VisionView:
    """The view without what a reducer does not declare, as the runner fills it."""
    needs, looks = reducer.signals(), reducer.looks_at(view.depth)
    shown = {name for name, signal in BLOCK_SIGNALS.items() if signal in needs}
    own: dict[str, Any] = {
        name: getattr(view, name) if name in shown and None in looks else None for name in BLOCK_SIGNALS
    }
    elsewhere = {block: {name: value for name, value in view._elsewhere[block].items() if name in shown}
                 for block in looks if block is not None}  # fmt: skip
    relevant = Signal.TEXT_RELEVANCE in needs and view.site.kind == "projected"
    handed = Signal.CLS_TOKEN in needs and view.site.kind in ("features", "projected")
    return dataclasses.replace(
        view,
        **own,
        _elsewhere=elsewhere,
        _extra=made_up(needs, "vision", tuple(view.valid.shape), torch.Generator().manual_seed(0)),
        _declared=extra_names(needs),
        _text_relevance=view._text_relevance if relevant else None,
        _cls_token=view._cls_token if handed else None,
        _digest=view._digest if Signal.DIGEST in needs else None,
    )


def _rows(attention: Tensor, has_cls: bool) -> Tensor:
    """The CLS token's rows ``[b, h, n]``, or what the tokens receive ``[b, 1, n]``."""
    return attention if has_cls else attention.mean(dim=1, keepdim=True)


def _padded(values: Tensor, valid: Tensor, filler: float) -> Tensor:
    return values.masked_fill(~valid[..., None], filler)


def tensor_fields(view: VisionView) -> dict[str, Tensor]:
    """All tensors of a view by field name."""
    values = {field.name: getattr(view, field.name) for field in dataclasses.fields(view)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def alone(view: VisionView, row: int) -> VisionView:
    """One image of a batch as it would come without the others: no padding."""
    count = int(view.counts[row])

    def part(name: str, value: Tensor) -> Tensor:
        own = value[row : row + 1]
        if name == "_cls_attention":
            own = own[..., :count]
        elif name not in ("_digest", "_cls_token"):
            own = own[:, :count]
        return own.clone()

    parts: dict[str, Any] = {name: part(name, value) for name, value in tensor_fields(view).items()}
    elsewhere = {block: {name: part(name, value) for name, value in signals.items()}
                 for block, signals in view._elsewhere.items()}  # fmt: skip
    return dataclasses.replace(view, **parts, padded=False, _elsewhere=elsewhere)


def decision(selection: Selection, view: VisionView, row: int) -> tuple[list[int], list[int] | None, list[bool] | None]:
    """One row of a selection without padding: kept tokens, slots, marks."""
    count = int(view.counts[row])
    keep = selection.keep.expand(view.batch_size, -1)[row].tolist()
    real = [slot for slot, index in enumerate(keep) if 0 <= index < count]
    slots = None if selection.assign is None else selection.assign[row, :count].tolist()
    marks = None if selection.protect is None else [bool(selection.protect[row, slot]) for slot in real]
    return [keep[slot] for slot in real], slots, marks
