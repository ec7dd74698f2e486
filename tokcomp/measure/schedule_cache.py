"""The dry run of the cache: a policy asked on a made-up cache after the prefill and after every decoding step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from tokcomp.measure.assumptions import Assumptions
from tokcomp.measure.probes import CONTENTS, HEAD_DIM, Content, attention, features, kept
from tokcomp.measure.schedule_stages import Prompt, States
from tokcomp.measure.shape import ModelShape
from tokcomp.selection import Selection
from tokcomp.stages import CachePolicy
from tokcomp.types import CacheView, Signal

__all__ = ["cache_schedule"]

_MOST_HEADS = 4
"""Key/value heads of the made-up cache: enough for heads to differ, few enough to be quick."""

Steps = tuple[tuple[float, ...], ...]


def cache_schedule(shape: ModelShape, policy: CachePolicy | None, prompt: Prompt, history: Sequence[States],
                   new_tokens: int, assumptions: Assumptions) -> tuple[tuple[float, ...], Steps]:  # fmt: skip
    """The cache of every layer from the prefill to the last token.

    Returns:
        Entries after the prefill by layer, and by decoding step and layer the entries that the step reads.

    Raises:
        ConfigurationError: the counts depend on the content and none is assumed.
    """
    columns: list[list[float]] = []
    known: list[CachePolicy] = []
    for layer in range(shape.layers):
        entries = prompt.text + history[layer][0].count
        acting = None if policy is None else policy.of_layer(layer, shape.layers)
        if acting is None:
            columns.append([entries + step for step in range(new_tokens)])
            continue
        # The first layer of a policy tells whether its decoding depends on the content; all steps of all layers are slow.
        compared = 1 if acting in known else new_tokens
        known.append(acting)
        runs = [
            _layer_run(shape, acting, layer, content, prompt, history, compared if position else new_tokens, position)
            for position, content in enumerate(CONTENTS)
        ]
        if all(run == runs[0][: len(run)] for run in runs):
            columns.append(runs[0])
        else:
            left = min(assumptions.use("cache", acting), entries)
            columns.append([left + step for step in range(new_tokens)])
    steps = tuple(tuple(column[step] for column in columns) for step in range(1, new_tokens))
    return tuple(column[0] for column in columns), steps


def _layer_run(shape: ModelShape, policy: CachePolicy, layer: int, content: Content, prompt: Prompt,
               history: Sequence[States], new_tokens: int, position: int) -> list[float]:  # fmt: skip
    """Entries after the prefill, then those that each decoding step reads (its own included, before it evicts)."""
    made_up = _MadeUpCache(shape, policy, layer, content, prompt, history, position)
    view = made_up.view()
    if Signal.SURVEY in policy.signals():
        policy.survey(view)
    lengths = [made_up.shorten(policy.after_prefill(view))]
    if not policy.decodes():
        return [lengths[0] + step for step in range(new_tokens)]
    for step in range(1, new_tokens):
        made_up.append(prompt.text + prompt.placeholders + step - 1)
        lengths.append(made_up.entries)
        made_up.shorten(policy.after_step(made_up.view()))
    return lengths


class _MadeUpCache:
    """One layer's cache with made-up keys and values; what the runner would do to it is done to its tables."""

    def __init__(self, shape: ModelShape, policy: CachePolicy, layer: int, content: Content, prompt: Prompt,
                 history: Sequence[States], position: int) -> None:  # fmt: skip
        self._policy, self._layer, self._depth, self._content, self._prompt = (
            policy,
            layer,
            shape.layers,
            content,
            prompt,
        )
        self._heads = min(shape.kv_heads, _MOST_HEADS)
        alive, last = history[layer][position], history[-1][position]
        vision = prompt.before + alive.origin[0]
        after = prompt.before + prompt.placeholders + torch.arange(prompt.after)
        is_text = (torch.ones(prompt.before, dtype=torch.bool), torch.ones(prompt.after, dtype=torch.bool))
        final = torch.isin(alive.origin[0], last.origin[0])
        tables = {
            "index": torch.cat([torch.arange(prompt.before), vision, after]),
            "vision": torch.cat([~is_text[0], torch.ones_like(final), ~is_text[1]]),
            "protected": torch.cat([~is_text[0], alive.protected[0], ~is_text[1]]),
            "final": torch.cat([is_text[0], final, is_text[1]]),
        }
        order = tables["index"].argsort(stable=True)  # a reducer's order of survivors need not be the image's
        self._tables = {name: table[order].repeat(1, self._heads, 1) for name, table in tables.items()}
        self._tables["valid"] = torch.ones_like(self._tables["vision"])
        self._memory: dict[str, Tensor] = {}
        self._generated = 0
        self._initial = self._tables["vision"][:, 0].sum(dim=-1)

    @property
    def entries(self) -> float:
        """Valid entries, the mean over heads."""
        return _plain(float(self._tables["valid"].sum(-1).double().mean()))

    def view(self) -> CacheView:
        length, needs = self._tables["index"].shape[-1], self._policy.signals()
        keys = features(self._content, length, HEAD_DIM, seed=4)[:, None].repeat(1, self._heads, 1, 1)
        rows = attention(self._content, 1, length, 0, self._heads)
        return CacheView(
            layer=self._layer,
            depth=self._depth,
            keys=keys,
            values=keys.flip(-1),
            valid=self._tables["valid"],
            index=self._tables["index"],
            vision=self._tables["vision"],
            protected=self._tables["protected"],
            prompt=torch.tensor([self._prompt.text + self._prompt.placeholders]),
            after=torch.tensor([self._prompt.after if self._prompt.placeholders else self._prompt.text]),
            initial=self._initial,
            generated=self._generated,
            memory=self._memory,
            group=1,
            _received=rows[:, :, 0] if Signal.RECEIVED_ATTENTION in needs else None,
            _attention_rows=partial(_one_row, rows) if Signal.ATTENTION_ROWS in needs else None,
            _queries=keys.flip(2) if Signal.QUERIES in needs else None,
            _rotation=_no_rotation if Signal.QUERIES in needs else None,
            _surveyed=_sparsities(self._content, self._depth) if Signal.SURVEY in needs else None,
            _final=self._tables["final"] if Signal.FINAL_TOKENS in needs else None,
            _digest=torch.zeros(1, dtype=torch.long) if Signal.DIGEST in needs else None,
        )

    def shorten(self, selection: Selection | None) -> float:
        """Keep what was selected; the entries left. A policy that only hides entries takes none away."""
        if selection is None or self._policy.hides():
            return self.entries
        keep = selection.keep[:1]
        keep = keep[:, None].expand(1, self._heads, -1) if keep.dim() == 2 else keep
        present = keep >= 0
        index = keep.clamp(min=0)
        self._tables = {name: table.gather(-1, index) for name, table in self._tables.items()}
        self._tables["valid"] = self._tables["valid"] & present
        self._tables["index"] = self._tables["index"].masked_fill(~present, -1)
        self._memory = {name: table.gather(-1, index).masked_fill(~present, 0) for name, table in self._memory.items()}
        return _plain(kept(selection))

    def append(self, position: int) -> None:
        """A decoding step's own entry."""
        self._generated += 1
        new = {"index": position, "vision": False, "protected": False, "final": True, "valid": True}
        self._tables = {name: _with_last(table, new[name]) for name, table in self._tables.items()}
        self._memory = {name: _with_last(table, 0) for name, table in self._memory.items()}


def _one_row(rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield rows, torch.ones(1, 1, dtype=torch.bool)


def _no_rotation(steps: int) -> Tensor:
    return torch.eye(HEAD_DIM)[None]


def _sparsities(content: Content, depth: int) -> Tensor:
    """Made-up numbers about every layer ``[1, depth]``: alike, or as different as layers can be."""
    return torch.full((1, depth), 0.5) if content is Content.ALIKE else torch.linspace(0.1, 0.9, depth)[None]


def _with_last(table: Tensor, value: int | bool) -> Tensor:
    return torch.cat([table, table.new_full((*table.shape[:-1], 1), value)], dim=-1)


def _plain(number: float) -> float:
    """An integer where the number is whole, so that counts stay exact."""
    return int(number) if number == int(number) else number
