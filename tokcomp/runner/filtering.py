"""Runs a prefill filter between two layers of the decoder."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from tokcomp.deferred import deferred
from tokcomp.errors import CompatibilityError
from tokcomp.models.adapter import Decoder
from tokcomp.ops.scores import attention_rows
from tokcomp.plugin_signals import attended, extra_names
from tokcomp.runner.apply import check_selection, gather_tokens
from tokcomp.runner.divided import Divided, parts_of
from tokcomp.runner.extra import from_decoder
from tokcomp.runner.masks import over_heads
from tokcomp.runner.passes import Pass
from tokcomp.runner.shortening import shorten
from tokcomp.stages import PrefillFilter
from tokcomp.types import PrefillView, Selection, Signal

__all__ = ["Filtering"]


class Filtering:
    """One filter in one decoder.

    Attributes:
        acting: which filter acts after which layer: the one that was given, or those that it wraps.
        preparing: those that look at the prompt before the first layer.
    """

    def __init__(self, strategy: PrefillFilter, decoder: Decoder, *, protects: bool) -> None:
        self.decoder, self.protects, self.depth = decoder, protects, len(decoder.layers)
        layers = sorted(strategy.acts_after(self.depth))
        wrong = [layer for layer in layers if not 0 <= layer < self.depth - 1]
        if wrong:
            raise CompatibilityError(
                f"prefill strategy '{strategy.name}' acts after layer {wrong[0]}, but this model has {self.depth} layers "
                f"and dropping must come before the last one: give 0..{self.depth - 2}"
            )
        self.acting = {layer: strategy.of_layer(layer, self.depth) for layer in layers}
        distinct = {id(each): each for each in self.acting.values()}.values()
        self.preparing = [each for each in distinct if each.prepares()]
        for each in distinct:
            self._refuse_unmet(each)

    def _refuse_unmet(self, strategy: PrefillFilter) -> None:
        """Refuse what this decoder cannot show, before anything runs."""
        who = f"prefill strategy '{strategy.name}'"
        if strategy.attention_of == "next" and self.decoder.query_key is None:
            raise CompatibilityError(
                f"{who} looks through the next layer's query and key projections, which this decoder does not have apart: "
                "use a strategy that reads the attention of a layer that has run, such as fastv"
            )
        if Signal.FINAL_NORM in strategy.signals() and self.decoder.norm is None:
            raise CompatibilityError(f"{who} needs the norm before the output head, and this decoder shows none")

    def watches(self, layer: int) -> bool:
        """Whether the filter that acts after ``layer`` looks at that layer's queries or keys."""
        strategy = self.acting.get(layer)
        return strategy is not None and (
            Signal.KEYS in strategy.signals()
            or bool(attended(strategy.signals(), "prefill"))
            or (_asks_rows(strategy) and strategy.attention_of == "this")
        )

    def observe(self, run: Pass, layer: int, query: Tensor, key: Tensor, scale: float, **logits: Any) -> None:
        """Take from one layer's attention what the filter asked for."""
        strategy = self.acting[layer]
        assert run.sequence is not None
        if Signal.KEYS in strategy.signals():
            run.keys = key[:, :, -run.sequence.length :]
        made = from_decoder(strategy.signals(), "prefill", query, key, scale, run.sees, layer=layer, **logits)
        run.extra = {name: value[:, -run.sequence.length :] for name, value in made.items()}
        if _asks_rows(strategy) and strategy.attention_of == "this":
            query = query[:, :, query.shape[2] - self._height(run, strategy) :]
            run.rows = self._rows(run, run.seen(query), query, key, scale, logits)

    def prepare(self, run: Pass, hidden: Tensor) -> None:
        """Show the embeddings ``[b, l, d]`` to the filters that want to see them."""
        if not self.preparing:
            return
        assert run.sequence is not None
        slots, real = run.sequence.slots()
        for strategy in self.preparing:
            view = self._view(run, strategy, -1, hidden, slots, real)
            if strategy.budget_per != "prompt":
                divided, initial = self._divided(run, strategy, view, slots)
                view = divided.shown(view, initial)
            strategy.prepare(view)

    def apply(self, run: Pass, layer: int, hidden: Tensor) -> Tensor:
        """Let the filter decide on the output of ``layer`` and shorten the pass's sequence; returns the hidden states
        ``[b, l', d]`` that go on."""
        sequence, strategy = run.sequence, self.acting[layer]
        assert sequence is not None
        if _asks_rows(strategy) and strategy.attention_of == "next":
            assert self.decoder.query_key is not None
            tables = run.tables(layer + 1, hidden)
            query, key, scale = self.decoder.query_key(layer + 1, hidden, self._height(run, strategy), tables)
            mask = over_heads(run.sees_prompt(layer + 1).last(query.shape[2], query.device), query.shape[1])
            if run.turn is not None:
                key = torch.cat([run.turn.layers[layer + 1].held_keys(), key], dim=2)
            run.rows = self._rows(run, mask, query, key, scale, self.decoder.logits(layer + 1))
        slots, real = sequence.slots()
        view = self._view(run, strategy, layer, hidden, slots, real)
        who = f"prefill strategy '{strategy.name}'"
        selection = self._select(run, strategy, view, slots, who)
        protected = view.protected if self.protects and strategy.respects_protected else None
        run.rows = run.keys = None
        run.extra = {}
        anew = strategy.positions == "renumber"
        return shorten(run, layer, hidden, slots, real, selection, protected, number_anew=anew)

    def _select(self, run: Pass, strategy: PrefillFilter, view: PrefillView, slots: Tensor, who: str) -> Selection:
        if strategy.budget_per == "prompt" or max(run.request.images_of) < 1:
            selection = strategy.filter(view)
            check_selection(selection, view.valid, who=who)
            return selection
        divided, initial = self._divided(run, strategy, view, slots)
        return divided.select(strategy, view, initial, who)

    @staticmethod
    def _divided(run: Pass, strategy: PrefillFilter, view: PrefillView, slots: Tensor) -> tuple[Divided, Tensor]:
        """The tokens of a view dealt out to the parts that have a budget each, and how many tokens each had at first."""
        assert run.sequence is not None
        prompt, key = run.request.prompt, ("parts", strategy.budget_per)
        if key not in run.memo:
            part, parts = parts_of(run.request, strategy.budget_per)
            ids = torch.arange(parts, device=part.device)[:, None]
            initial = ((part[:, None] == ids) & prompt.vision[:, None]).sum(dim=2).flatten()
            run.memo[key] = part, parts, initial
        part, parts, initial = run.memo[key]
        columns = run.sequence.index.gather(1, slots)
        return Divided.of(part.gather(1, columns), view.valid, parts), initial

    def _height(self, run: Pass, strategy: PrefillFilter) -> int:
        return 1 if strategy.queries == "last" else run.request.prompt.text_rows

    def _rows(self, run: Pass, mask: Tensor | None, query: Tensor, key: Tensor, scale: float,
              logits: dict[str, Any]) -> Tensor:  # fmt: skip
        """Attention of the queries over all keys, of which those of the sequence are shown ``[b, h, t, l]``."""
        assert run.sequence is not None
        return attention_rows(query, key, scale=scale, mask=mask, **logits)[..., -run.sequence.length :]

    def _view(
        self, run: Pass, strategy: PrefillFilter, layer: int, hidden: Tensor, slots: Tensor, real: Tensor
    ) -> PrefillView:
        sequence, prompt, signals = run.sequence, run.request.prompt, strategy.signals()
        assert sequence is not None
        columns = functools.cache(lambda: sequence.index.gather(1, slots))
        attention, rows = self._attention(run, strategy, slots, real)
        keys = text = text_keys = None
        # The text after the last image is never dropped, so it is always what the rows end with.
        first = sequence.length - prompt.text_rows
        if Signal.TEXT in signals:
            text = hidden[:, first:]
        if run.keys is not None:
            keys = run.keys.gather(2, slots[:, None, :, None].expand(-1, run.keys.shape[1], -1, run.keys.shape[3]))
            text_keys = run.keys[:, :, first:] if Signal.TEXT in signals else None
        return PrefillView(
            layer=layer,
            depth=self.depth,
            tokens=deferred(lambda: gather_tokens(hidden, slots)),
            valid=real,
            sizes=deferred(lambda: sequence.sizes_at(prompt, slots)),
            origin=deferred(lambda: prompt.origin.gather(1, columns())),
            image=deferred(lambda: prompt.image.gather(1, columns())),
            protected=deferred(lambda: prompt.protected.gather(1, columns()) & real),
            padded=not sequence.uniform,
            marked=self.protects,
            initial=deferred(lambda: prompt.vision.sum(dim=1)),
            memory=run.noted.setdefault(id(strategy), {}),
            _attention=attention,
            _rows=rows,
            _keys=keys,
            _text=text,
            _text_valid=prompt.text_valid if text is not None else None,
            _text_keys=text_keys,
            _final_norm=self.decoder.norm if Signal.FINAL_NORM in signals else None,
            _extra={name: gather_tokens(value, slots) for name, value in run.extra.items()},
            _declared=extra_names(signals),
            _digest=prompt.digest if Signal.DIGEST in signals else None,
        )

    @staticmethod
    def _attention(run: Pass, strategy: PrefillFilter, slots: Tensor,
                   real: Tensor) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        """The rows that the filter asked for over the vision tokens ``[b, h, t, n]``, 0 for padding, and which of them are
        real ``[b, t]``."""
        sequence, prompt = run.sequence, run.request.prompt
        assert sequence is not None
        if run.rows is None:
            return None, None
        attention = run.rows.gather(3, slots[:, None, None].expand(-1, *run.rows.shape[1:3], -1))
        shown = None if sequence.uniform else real[:, None, None]
        rows = prompt.text_valid if strategy.queries == "text" else None
        if rows is None:
            rows = deferred(lambda: torch.ones_like(attention[:, 0, :, 0], dtype=torch.bool))
        elif len(set(prompt.behind)) > 1:
            shown = rows[:, None, :, None] if shown is None else rows[:, None, :, None] & shown
        return attention if shown is None else attention.masked_fill(~shown, 0.0), rows


def _asks_rows(strategy: PrefillFilter) -> bool:
    return Signal.QUERY_ATTENTION in strategy.signals() and strategy.queries is not None
