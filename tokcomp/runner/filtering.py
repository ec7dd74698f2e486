"""Runs a prefill filter between two layers of the decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from tokcomp.errors import CompatibilityError, UnsupportedError
from tokcomp.models.adapter import Decoder
from tokcomp.ops.scores import attention_rows
from tokcomp.runner.apply import clean_selection, compress_index, gather_tokens, with_protected
from tokcomp.runner.masks import causal_rows
from tokcomp.runner.passes import Pass
from tokcomp.runner.request import Sequence
from tokcomp.stages import PrefillFilter
from tokcomp.types import PrefillView, Selection, Signal

__all__ = ["Filtering"]


class Filtering:
    """One filter in one decoder.

    Attributes:
        layers: the layers after which it acts.
        observes: whether it looks at queries or keys of those layers.
    """

    def __init__(self, strategy: PrefillFilter, decoder: Decoder, *, protects: bool) -> None:
        self.filter, self.decoder = strategy, decoder
        self.binds = protects and strategy.respects_protected
        depth = len(decoder.layers)
        self.layers = frozenset(strategy.acts_after(depth))
        wrong = sorted(layer for layer in self.layers if not 0 <= layer < depth - 1)
        if wrong:
            raise CompatibilityError(
                f"prefill strategy '{strategy.name}' acts after layer {wrong[0]}, but this model has {depth} layers and "
                f"dropping must come before the last one: give 0..{depth - 2}"
            )
        self.observes = bool(strategy.needs & {Signal.QUERY_ATTENTION, Signal.KEYS})
        self.who = f"prefill strategy '{strategy.name}'"

    def observe(self, run: Pass, query: Tensor, key: Tensor, scale: float) -> None:
        """Take from one layer's attention what the filter asked for."""
        assert run.sequence is not None
        if Signal.KEYS in self.filter.needs:
            run.keys = key
        if Signal.QUERY_ATTENTION not in self.filter.needs or self.filter.queries is None:
            return
        rows = 1 if self.filter.queries == "last" else run.request.prompt.text_rows
        mask = causal_rows(rows, run.sequence.length, run.sequence.valid, query.device)
        run.rows = attention_rows(query[:, :, -rows:], key, scale=scale, mask=mask)

    def apply(self, run: Pass, layer: int, hidden: Tensor) -> Tensor:
        """Let the filter decide on the output of ``layer`` and shorten the pass's sequence; returns the hidden states
        ``[b, l', d]`` that go on."""
        sequence = run.sequence
        assert sequence is not None
        slots, real = sequence.slots(run.request.prompt)
        view = self._view(run, layer, hidden, slots, real)
        selection = clean_selection(self.filter.filter(view), real, uniform=sequence.uniform, who=self.who)
        if selection.assign is not None:
            raise UnsupportedError(f"{self.who} merges tokens inside the language model, which is not supported")
        if self.binds:
            selection = with_protected(selection, view.protected)
        run.rows = run.keys = None
        return self._shorten(run, hidden, slots, real, selection)

    def _view(self, run: Pass, layer: int, hidden: Tensor, slots: Tensor, real: Tensor) -> PrefillView:
        assert run.sequence is not None
        prompt = run.request.prompt
        columns = run.sequence.index.gather(1, slots)
        attention = keys = rows = None
        if run.rows is not None:
            attention = run.rows.gather(3, slots[:, None, None].expand(-1, *run.rows.shape[1:3], -1))
            rows = torch.ones(slots.shape[0], attention.shape[2], dtype=torch.bool, device=slots.device)
            if self.filter.queries == "text" and prompt.text_valid is not None:
                rows = prompt.text_valid
            attention = attention.masked_fill(~(rows[:, None, :, None] & real[:, None, None]), 0.0)
        if run.keys is not None:
            keys = run.keys.gather(2, slots[:, None, :, None].expand(-1, run.keys.shape[1], -1, run.keys.shape[3]))
        return PrefillView(
            layer=layer,
            depth=len(self.decoder.layers),
            tokens=gather_tokens(hidden, slots),
            valid=real,
            sizes=prompt.sizes.gather(1, columns),
            origin=prompt.origin.gather(1, columns),
            image=prompt.image.gather(1, columns),
            protected=prompt.protected.gather(1, columns) & real,
            initial=prompt.vision.sum(dim=1),
            _attention=attention,
            _rows=rows,
            _keys=keys,
            _digest=prompt.digest if Signal.DIGEST in self.filter.needs else None,
        )

    def _shorten(self, run: Pass, hidden: Tensor, slots: Tensor, real: Tensor, selection: Selection) -> Tensor:
        sequence = run.sequence
        assert sequence is not None
        n, k = slots.shape[1], selection.keep.shape[1]
        if k == n and selection.ascending and not selection.ragged:
            return hidden
        kept = torch.zeros(slots.shape[0], n + 1, dtype=torch.bool, device=slots.device)
        kept = kept.scatter(1, selection.keep.where(selection.keep >= 0, n), True)[:, :n] & real
        keep = _columns_kept(sequence, slots, kept, real)
        width, n_vision, uniform, even = sequence.length - n + k, k, True, sequence.valid is None
        if not sequence.uniform or selection.ragged:
            # One look at the device tells how long the longest row is now, and whether all rows are of one length.
            counts = torch.stack([keep.sum(dim=1), kept.sum(dim=1)])
            (width, n_vision), (least, fewest) = counts.amax(dim=1).tolist(), counts.amin(dim=1).tolist()
            uniform, even = n_vision == fewest, width == least
        taken = compress_index(keep, width)
        valid = None if even else keep.gather(1, taken)
        if not selection.ascending:
            taken = _in_order(taken, slots, selection.keep, kept, valid)
        anew = self.filter.positions == "renumber"
        run.sequence = sequence.take(taken, valid, n_vision=n_vision, uniform=uniform, number_anew=anew)
        run.changed = True
        hidden = gather_tokens(hidden, taken)
        assert run.rotary is not None
        if anew:
            run.rotary = self.decoder.rotary(hidden, run.sequence.positions)
        else:
            cos, sin = run.rotary
            run.rotary = gather_tokens(cos, taken), gather_tokens(sin, taken)
        return hidden


def _columns_kept(sequence: Sequence, slots: Tensor, kept: Tensor, real: Tensor) -> Tensor:
    """Columns of the sequence that go on ``[b, l]``: all text, and the vision tokens in ``kept`` ``[b, n]``."""
    keep = torch.ones_like(sequence.index, dtype=torch.bool) if sequence.valid is None else sequence.valid
    # Slots that are no vision token (rows with fewer of them) stay what they are.
    return keep.scatter(1, slots, kept | (keep.gather(1, slots) & ~real))


def _in_order(taken: Tensor, slots: Tensor, order: Tensor, kept: Tensor, valid: Tensor | None) -> Tensor:
    """Let the surviving vision tokens stand in the order of ``order`` ``[b, k]`` within the columns that they occupy."""
    vision = torch.zeros(taken.shape[0], int(taken.max()) + 1, dtype=torch.bool, device=taken.device)
    vision = vision.scatter(1, slots, kept).gather(1, taken)
    if valid is not None:
        vision = vision & valid
    rank = (vision.long().cumsum(dim=1) - 1).clamp(min=0, max=order.shape[1] - 1)
    chosen = slots.gather(1, order.clamp(min=0)).gather(1, rank)
    return chosen.where(vision, taken)
