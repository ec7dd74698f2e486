"""Made-up contents that a strategy can be asked on, to learn how many tokens it keeps without a model or an image.

A strategy with a budget keeps the same number whatever the content; one with thresholds does not. Three contents that
differ as much as contents can (all tokens alike; half alike, half not; all different and a few that get all attention)
tell the two apart: equal counts on all three are taken as decided by the strategy's fields.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tokcomp.selection import Selection
from tokcomp.stages import PrefillFilter, VisionReducer
from tokcomp.types import PrefillView, Signal, Site, VisionView

__all__ = ["CONTENTS", "Alive", "Content", "attention", "features", "kept", "prefill_view", "vision_view"]

_WIDTH, _HEADS, HEAD_DIM = 32, 4, 16
"""Sizes of the made-up tensors; counts do not depend on them."""


class Content(StrEnum):
    """What the tokens of a made-up image look like."""

    ALIKE = "alike"
    MIXED = "mixed"
    PEAKED = "peaked"


CONTENTS = tuple(Content)


@lru_cache(maxsize=64)
def features(content: Content, n: int, width: int = _WIDTH, seed: int = 0) -> Tensor:
    """Token states or keys ``[1, n, width]``; kept for the next call, so never to be written to."""
    noise = torch.randn(1, n, width, generator=torch.Generator().manual_seed(seed))
    if content is Content.PEAKED:
        return noise
    alike = 1 + 1e-3 * noise
    if content is Content.ALIKE:
        return alike
    return torch.where(torch.arange(n)[:, None] < n // 2, alike, noise)


@lru_cache(maxsize=64)
def attention(content: Content, rows: int, n: int, others: int, heads: int = _HEADS) -> Tensor:
    """Attention ``[1, heads, rows, n]`` over n tokens; ``others`` columns share the softmax and are left out. Kept for the
    next call, so never to be written to."""
    logits = torch.randn(1, heads, rows, n + others, generator=torch.Generator().manual_seed(1))
    if content is Content.ALIKE:
        logits = 0.01 * logits
    elif content is Content.PEAKED:
        logits = logits + 9.0 * (torch.arange(n + others) % 16 == 0)
    return logits.softmax(-1)[..., :n]


def kept(selection: Selection) -> float:
    """Tokens that the first row keeps; the mean over heads where heads differ."""
    counts = (selection.keep[0] >= 0).sum(-1)
    return float(counts.double().mean()) if counts.dim() else int(counts)


@dataclass(frozen=True)
class Alive:
    """The tokens that are left of one made-up image or prompt.

    Attributes:
        origin, sizes, protected, image: ``[1, n]``, as the views show them.
        count: tokens left; a fraction where it is an assumed mean, and then ``origin`` has the nearest whole number.
    """

    origin: Tensor
    sizes: Tensor
    protected: Tensor
    image: Tensor
    count: float

    @classmethod
    def all(cls, n: int) -> Alive:
        whole = torch.arange(n)[None]
        return cls(whole, torch.ones(1, n), torch.zeros(1, n, dtype=torch.bool), torch.zeros_like(whole), n)

    @property
    def n(self) -> int:
        return self.origin.shape[1]

    def take(self, selection: Selection) -> Alive:
        """What a selection leaves."""
        index = selection.keep[:1]
        index = index[:, index[0] >= 0]
        sizes, protected = self.sizes.gather(1, index), self.protected.gather(1, index)
        if selection.assign is not None:
            slots = selection.assign[:1]
            sizes = torch.zeros_like(sizes).scatter_add(1, slots.clamp(min=0), self.sizes.masked_fill(slots < 0, 0))
        if selection.protect is not None:
            protected = protected | selection.protect[:1, : index.shape[1]]
        origin, image = self.origin.gather(1, index), self.image.gather(1, index)
        if index.shape[1] == self.n:  # none has gone: an assumed fraction stays what it was
            return Alive(origin, sizes, protected, image, self.count)
        return Alive(origin, sizes, protected, image, index.shape[1])

    def first(self, count: float) -> Alive:
        """An assumed number of tokens: as many of the first ones, protected ones before the others."""
        order = (~self.protected).long().argsort(dim=1, stable=True)[:, : max(1, round(count))].sort(dim=1).values
        return replace(self.take(Selection(keep=order)), count=count)

    def repeated(self, images: int, placeholders: int) -> Alive:
        """The tokens of several such images in one prompt, each with ``placeholders`` of its own."""
        image = torch.arange(images).repeat_interleave(self.n)[None]
        return Alive(
            origin=self.origin.repeat(1, images) + image * placeholders,
            sizes=self.sizes.repeat(1, images),
            protected=self.protected.repeat(1, images),
            image=image,
            count=self.count * images,
        )


def vision_view(content: Content, reducer: VisionReducer, site: Site, depth: int, alive: Alive, *,
                grid: tuple[int, int], n_prefix: int) -> VisionView:  # fmt: skip
    """The view that a reducer would get at ``site``, with made-up content in the signals that it declared."""
    n, needs = alive.n, reducer.signals()
    keys = features(content, n, HEAD_DIM, seed=2)
    row = attention(content, 1, n, n_prefix)[:, :, 0]
    found = {
        "_keys": keys if Signal.KEYS in needs else None,
        "_cls_attention": row if Signal.CLS_ATTENTION in needs else None,
        "_unsplit_attention": row[:, 0] if Signal.UNSPLIT_ATTENTION in needs else None,
        "_unsplit_keys": keys if Signal.UNSPLIT_KEYS in needs else None,
    }
    signals: dict[str, Any] = {name: value for name, value in found.items() if value is not None}
    looks_at = reducer.looks_at(depth)
    return VisionView(
        site=site,
        depth=depth,
        tokens=features(content, n),
        valid=torch.ones(1, n, dtype=torch.bool),
        sizes=alive.sizes,
        origin=alive.origin,
        protected=alive.protected,
        grid=grid,
        n_prefix=n_prefix,
        has_cls=n_prefix > 0,
        _cls_token=features(content, 1)[:, 0] if Signal.CLS_TOKEN in needs and n_prefix else None,
        _text_relevance=row.mean(dim=1) if Signal.TEXT_RELEVANCE in needs else None,
        _digest=torch.zeros(1, dtype=torch.long) if Signal.DIGEST in needs else None,
        _elsewhere={block: signals for block in looks_at if block is not None},
        **(signals if None in looks_at else {}),
    )


def prefill_view(content: Content, strategy: PrefillFilter, layer: int, depth: int, alive: Alive, *, initial: int,
                 text_before: int, text_after: int) -> PrefillView:  # fmt: skip
    """The view that a filter would get after ``layer``, with made-up content in the signals that it declared."""
    n, needs = alive.n, strategy.signals()
    rows = 1 if strategy.queries == "last" else max(1, text_after)
    attended = Signal.QUERY_ATTENTION in needs and strategy.queries is not None
    keys = features(content, n, HEAD_DIM, seed=3)[:, None].repeat(1, _HEADS, 1, 1)
    told = features(Content.PEAKED, max(1, text_after), seed=4)  # text differs from token to token
    view = PrefillView(
        layer=layer,
        depth=depth,
        tokens=features(content, n),
        valid=torch.ones(1, n, dtype=torch.bool),
        sizes=alive.sizes,
        origin=alive.origin,
        image=alive.image,
        protected=alive.protected,
        initial=torch.tensor([initial]),
        _attention=attention(content, rows, n, text_before + text_after) if attended else None,
        _rows=torch.ones(1, rows, dtype=torch.bool) if attended else None,
        _keys=keys if Signal.KEYS in needs else None,
        _text=told if Signal.TEXT in needs else None,
        _text_valid=torch.ones(1, told.shape[1], dtype=torch.bool) if Signal.TEXT in needs else None,
        _text_keys=told[:, None, :, :HEAD_DIM].repeat(1, _HEADS, 1, 1) if {Signal.TEXT, Signal.KEYS} <= needs else None,
        _final_norm=_as_it_is if Signal.FINAL_NORM in needs else None,
        _digest=torch.zeros(1, dtype=torch.long) if Signal.DIGEST in needs else None,
    )
    if strategy.prepares():
        strategy.prepare(replace(view, layer=-1))
    return view


def _as_it_is(states: Tensor) -> Tensor:
    return states
