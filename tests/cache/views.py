"""A cache that applies what a policy selects, and views of given keys and values; random views come from the contract kit."""

from __future__ import annotations

from collections.abc import MutableMapping

import torch
from torch import Tensor

from tokcomp import CachePolicy, CacheView, Selection, Signal
from tokcomp.ops.merging import apply_selection
from tokcomp.ops.scores import attention_rows, column_sums
from tokcomp.testing.cache_views import Rows, alone, kept, random_view, rotation

__all__ = ["Layer", "Rows", "alone", "kept", "merged", "naive_attention", "prompt_view", "random_view", "rotation"]


class Layer:
    """One layer's cache without padding: appends, attends, and applies a policy, in the order of a decoding step."""

    def __init__(self, policy: CachePolicy, batch: int, heads: int, width: int, *, group: int = 1,
                 vision: range = range(0), protected: Tensor | None = None) -> None:  # fmt: skip
        self.policy, self.group = policy, group
        self.vision = torch.tensor(list(vision), dtype=torch.long)
        self.protected = protected
        self.keys = self.values = torch.zeros(batch, heads, 0, width)
        self.index = torch.zeros(batch, heads, 0, dtype=torch.long)
        self.memory: MutableMapping[str, Tensor] = {}
        self.prompt = self.seen = 0
        self.rows: Rows | None = None
        self.visible: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Add the entries of the next tokens."""
        fresh = torch.arange(keys.shape[2]) + self.seen
        self.seen += keys.shape[2]
        self.index = torch.cat([self.index, fresh.expand(*self.index.shape[:2], -1)], dim=2)
        self.keys, self.values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Append ``keys`` and ``values``, attend with ``query`` (one row, or the prompt's), act; the last row's output
        before the eviction."""
        self.append(keys, values)
        t = keys.shape[2]
        scale = query.shape[-1] ** -0.5
        group = query.shape[1] // self.keys.shape[1]
        mask = None
        if self.visible is not None:
            mask = torch.cat([self.visible, torch.ones_like(self.visible[..., :t])], dim=-1)
            mask = mask.repeat_interleave(group, dim=1)[:, :, None]
        if self.prompt == 0:
            counts = torch.full(self.index.shape[:1], t)
            wanted = self.policy.prefill_rows(counts, self._after(t))
            count = None if wanted is None else int(wanted[0])
            received = column_sums(query, self.keys, scale=scale, causal=True, rows=count)
            self.rows = _all_rows(query[:, :, -(count or t) :], self.keys)
        rows = attention_rows(query[:, :, -1:], self.keys, scale=scale, mask=mask)
        if self.prompt > 0:
            received = rows.unflatten(1, (-1, group)).sum(dim=(2, 3))
        output = rows @ self.values.repeat_interleave(group, dim=1)
        self.act(received, first=self.prompt == 0)
        return output

    def act(self, received: Tensor, *, first: bool) -> None:
        """Show the policy the cache and apply what it selects."""
        length = self.index.shape[2]
        if first:
            self.prompt = length
        for name, value in self.memory.items():
            self.memory[name] = torch.cat([value, value.new_zeros(*value.shape[:2], length - value.shape[2])], dim=2)
        none = torch.zeros(self.index.shape, dtype=torch.bool)
        view = CacheView(
            layer=0,
            depth=1,
            keys=self.keys,
            values=self.values,
            valid=~none,
            index=self.index,
            vision=torch.isin(self.index, self.vision),
            protected=none if self.protected is None else _marked(self.index, self.protected),
            prompt=torch.full(self.index.shape[:1], self.prompt),
            after=self._after(self.prompt),
            initial=torch.full(self.index.shape[:1], len(self.vision)),
            n_queries=self.prompt if first else 1,
            group=self.group,
            generated=self.seen - self.prompt,
            memory=self.memory,
            _received=received if Signal.RECEIVED_ATTENTION in self.policy.signals() else None,
            _attention_rows=self.rows if first and Signal.ATTENTION_ROWS in self.policy.signals() else None,
        )
        self._apply(self.policy.after_prefill(view) if first else self.policy.after_step(view))

    def _after(self, prompt: int) -> Tensor:
        """Tokens behind the last vision entry, all where there is none."""
        last = int(self.vision.max()) + 1 if len(self.vision) else 0
        return torch.full(self.index.shape[:1], prompt - last)

    def _apply(self, selection: Selection | None) -> None:
        self.visible = None
        if selection is None:
            return
        selection.check(self.index.shape[2])
        keep = selection.keep if selection.keep.dim() == 3 else selection.keep[:, None]
        keep = keep.expand(*self.index.shape[:2], -1)
        assert bool((keep >= 0).all())
        if self.policy.hides():
            self.visible = torch.zeros(self.index.shape, dtype=torch.bool).scatter(2, keep, True)
            return
        wide = keep[..., None].expand(-1, -1, -1, self.keys.shape[3])
        self.keys, self.values = self.keys.gather(2, wide), self.values.gather(2, wide)
        self.index = self.index.gather(2, keep)
        self.memory = {name: value.gather(2, keep) for name, value in self.memory.items()}


def _marked(index: Tensor, columns: Tensor) -> Tensor:
    """Entries of the columns ``[b, n]`` of each sample ``[b, g, l]``."""
    return (index[..., None] == columns[:, None, None]).any(dim=-1)


def merged(view: CacheView, selection: Selection, *, keys_too: bool) -> tuple[Tensor, Tensor]:
    """Keys and values after a selection with ``assign``, as the runner makes them."""
    sizes = torch.ones(view.keys.shape[:3])
    values, _ = apply_selection(view.values, sizes, selection)
    if keys_too:
        return apply_selection(view.keys, sizes, selection)[0], values
    return view.keys.gather(2, selection.keep[..., None].expand_as(values)), values


def prompt_view(policy: CachePolicy, keys: Tensor, values: Tensor, query: Tensor | None = None, *, layer: int = 0,
                depth: int = 1, vision: Tensor | None = None, after: int | None = None) -> CacheView:  # fmt: skip
    """What a policy sees after a prefill without padding, with the signals that it declares, as the runner computes them.

    Args:
        keys, values: ``[b, g, l, d]``. ``query``: ``[b, h, t, d]``, the last t rows.
        vision: ``[l]`` vision entries. ``after``: text tokens behind the last of them; None: all tokens.
    """
    b, _, n, d = keys.shape
    index = torch.arange(n).expand(keys.shape[:3])
    counts = torch.full((b,), n)
    following = counts if after is None else torch.full((b,), after)
    received = None
    if Signal.RECEIVED_ATTENTION in policy.signals():
        assert query is not None
        wanted = policy.prefill_rows(counts, following)
        rows = None if wanted is None else int(wanted[0])
        received = column_sums(query, keys, scale=d**-0.5, causal=True, rows=rows)
    none = torch.zeros_like(index, dtype=torch.bool)
    return CacheView(
        layer=layer,
        depth=depth,
        keys=keys,
        values=values,
        valid=~none,
        index=index,
        vision=none if vision is None else vision.expand_as(none),
        protected=none,
        prompt=counts,
        after=following,
        initial=torch.zeros_like(counts) if vision is None else vision.sum().expand_as(counts),
        memory={},
        group=1 if query is None else query.shape[1] // keys.shape[1],
        _received=received,
        _attention_rows=None if Signal.ATTENTION_ROWS not in policy.signals() else _all_rows(query, keys),
    )


def _all_rows(query: Tensor | None, keys: Tensor) -> Rows:
    """All given query rows, causal."""
    assert query is not None
    attention = naive_attention(query, keys).float()
    return Rows(attention, torch.ones(attention.shape[0], attention.shape[2], dtype=torch.bool))


def naive_attention(query: Tensor, keys: Tensor) -> Tensor:
    """The causal attention map ``[b, h, t, l]`` by the formula; the rows are the last t."""
    group, t, n = query.shape[1] // keys.shape[1], query.shape[2], keys.shape[2]
    logits = query.double() @ keys.double().repeat_interleave(group, dim=1).transpose(-1, -2) / query.shape[-1] ** 0.5
    later = torch.arange(n) > torch.arange(n - t, n)[:, None]
    return logits.masked_fill(later, -torch.inf).softmax(dim=-1)
