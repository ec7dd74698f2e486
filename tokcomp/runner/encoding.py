"""One call of a vision tower: what the reducer sees at each site, and what becomes of the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokcomp.errors import UnsupportedError
from tokcomp.models.adapter import Tower
from tokcomp.ops.merging import apply_selection
from tokcomp.ops.received import received_attention, unsplit
from tokcomp.ops.relevance import mean_cosine_with
from tokcomp.ops.scores import attention_rows
from tokcomp.plugin_signals import extra_names
from tokcomp.runner.alike import alike, carried, joined, narrowed
from tokcomp.runner.apply import clean_selection, refuse_other
from tokcomp.runner.cuts import moves
from tokcomp.runner.extra import from_tower, split
from tokcomp.runner.images import Images
from tokcomp.runner.segments import Segments
from tokcomp.runner.text import Text
from tokcomp.runner.together import Together
from tokcomp.runner.units import over_units
from tokcomp.stages import VisionReducer
from tokcomp.types import Selection, Signal, Site, VisionView

__all__ = ["Encoding"]

_MASKED = torch.finfo(torch.float16).min  # large enough for every dtype's softmax, finite in all of them


@dataclass
class Encoding:
    """The state of one tower call.

    Attributes:
        tower: where it runs. ``reducer``: who decides; None: nobody.
        images: the token table.
        bias: additive attention mask of the blocks to come, or None.
        signals: what was taken from the attention of each block.
        observed: the blocks whose signals are wanted.
        lasting: the blocks whose signals are read at a later place than right after the block.
        text: the prompt's text of each row, where the reducer is guided by it.
        cls_token: the CLS token's state at the feature layer ``[i, d]``, where the reducer wants it.
        late: what was decided past the feature layer; applied to the features when they come.
        together: groups of rows that the reducer sees as one; None where it sees each by itself.
        segments: where tokens stand in a tower that attends by segments; None in others.
    """

    tower: Tower
    reducer: VisionReducer | None
    images: Images
    bias: Tensor | None = None
    signals: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    observed: frozenset[int] = frozenset()
    lasting: frozenset[int] = frozenset()
    text: Text | None = None
    cls_token: Tensor | None = None
    late: list[tuple[Site, Selection]] = field(default_factory=list)
    together: list[list[int]] | None = None
    segments: Segments | None = None

    def observe(self, number: int, query: Tensor, key: Tensor, scale: float) -> Tensor | None:
        """Take from one block's attention what the reducer asked for; returns the mask that it shall have, or None for the
        model's own."""
        assert self.reducer is not None
        if self.segments is not None:
            return self._observe_segment(number, query, key, scale)
        n_prefix, needs = self.tower.n_prefix, self.reducer.signals()
        signals: dict[str, Tensor] = {}
        if self.tower.packed:
            query, key = self._heads_in_rows(query), self._heads_in_rows(key)
        if Signal.KEYS in needs:
            signals["_keys"] = key.mean(dim=1)[:, n_prefix:]
        if Signal.CLS_ATTENTION in needs:
            signals["_cls_attention"] = self._attended(query, key, scale)
        if Signal.UNSPLIT_ATTENTION in needs:
            wide = unsplit(query), unsplit(key)
            signals["_unsplit_attention"] = self._attended(*wide, wide[0].shape[-1] ** -0.5)[:, 0]
        if Signal.UNSPLIT_KEYS in needs:
            signals["_unsplit_keys"] = unsplit(key)[:, 0, n_prefix:]
        signals |= from_tower(needs, query, key, scale, self.bias, n_prefix=n_prefix, layer=number)
        self.signals[number] = {name: over_units(self.images, name, signal) for name, signal in signals.items()}
        return None

    def _observe_segment(self, number: int, query: Tensor, key: Tensor, scale: float) -> Tensor | None:
        assert self.segments is not None and self.reducer is not None  # noqa: PT018
        bias = self.segments.bias(self.segments.seen, key.shape[2], query.dtype)
        whole = self.segments.gathered(query, key)
        if whole is not None and number in self.observed:
            self.signals[number] = self.segments.signals(*whole, scale, self.reducer.signals(), number)
        return bias

    def _heads_in_rows(self, x: Tensor) -> Tensor:
        """Queries or keys of a packed tower ``[1, h, sum, d]`` as ``[i, h, n, d]``."""
        rows = self.images.in_rows(x[0].transpose(0, 1).flatten(1), self.images.patches)
        return rows.unflatten(2, (x.shape[1], x.shape[3])).transpose(1, 2)

    def _attended(self, query: Tensor, key: Tensor, scale: float) -> Tensor:
        """The CLS token's attention ``[i, h, k]`` or, without such a token, what each token receives ``[i, 1, k]``; 0 for
        padding."""
        n_prefix, valid = self.tower.n_prefix, self.images.patch_valid
        if self.tower.has_cls:
            scores = attention_rows(query[:, :, :1], key, scale=scale, mask=self.bias)[:, :, 0, n_prefix:]
            if self.bias is not None:
                return scores  # the mask has hidden the padding
        else:
            received = received_attention(query[:, :, n_prefix:], key, scale=scale, bias=self.bias, valid=valid)
            scores = received[:, None, n_prefix:]
        return scores if valid is None else scores.masked_fill(~valid[:, None], 0.0)

    # -- the shapes in which the model hands units on ----------------------------------------------------------------

    def unfolded(self, features: Tensor) -> Tensor:
        """The states at the tower's ``entry`` or ``exit``, whatever their shape, one row each ``[i, k, d]``."""
        images = self.images
        if self.segments is not None:
            return self.segments.to_table(features)
        if not self.tower.packed:
            rows = features.reshape(images.n_rows, -1, features.shape[-1])
            if rows.shape[1] != images.origin.shape[1]:
                raise UnsupportedError(
                    f"the vision tower hands on {rows.shape[1]} tokens per image, but its adapter expects "
                    f"{images.origin.shape[1]}: the adapter's layout does not fit this model"
                )
            return rows
        return images.in_rows(features, images.counts().tolist() if images.touched else images.units)

    def folded(self, rows: Tensor, like: Tensor) -> Tensor:
        """``rows`` ``[i, k, d]`` in the shape that the model's own code had them in."""
        if self.segments is not None:
            return self.segments.to_sequence(rows, rows.shape[-1])
        if not self.tower.packed:
            return rows.reshape(rows.shape[0], *[1] * (like.dim() - 3), *rows.shape[1:])
        return rows[self.images.valid].reshape(*[1] * (like.dim() - 2), -1, rows.shape[-1])

    def gathered(self, output: Any) -> Tensor:
        """The units ``[i, n, d]`` in what a late method of the model returned."""
        if isinstance(output, Tensor):
            return self.unfolded(output)
        images, placed = self.images, self.images.layout.placed
        assert placed is not None
        units = torch.cat(list(output[0]))[placed.to(images.valid.device) >= 0]
        return images.in_rows(units, images.units)

    def returned(self, rows: Tensor, output: Any) -> Any:
        """What that method shall return with the tokens ``rows`` ``[i, k, d]`` left."""
        if isinstance(output, Tensor):
            return self.filled(rows, output)
        images, placed = self.images, self.images.layout.placed
        assert placed is not None
        packed = torch.cat(list(output[0])).clone()
        packed[placed.to(packed.device) >= 0] = self.filled(rows, rows).flatten(0, 1)[images.flat]
        return list(packed.split(list(images.layout.lengths))), *output[1:]

    def filled(self, rows: Tensor, like: Tensor) -> Tensor:
        """``rows`` ``[i, k, d]`` at the units at which they stand, NaN at all others, in the shape that all units have."""
        images = self.images
        if self.segments is not None:
            return self.segments.filled(self.segments.to_sequence(rows, rows.shape[-1]), torch.nan)
        home = images.home[..., None].expand_as(rows)
        units = rows.new_full((images.n_rows, images.n_slots, rows.shape[-1]), torch.nan).scatter(1, home, rows)
        units = units[:, : images.n_units]
        if not self.tower.packed:
            return units.reshape(images.n_rows, *[1] * (like.dim() - 3), *units.shape[1:])
        return units.flatten(0, 1)[images.flat].reshape(*[1] * (like.dim() - 2), -1, rows.shape[-1])

    def shorten(self, sites: Sequence[Site], hidden: Tensor) -> Tensor:
        """Let the reducer act on a block's hidden states ``[i, prefix + k, d]``."""
        if self.segments is not None:
            tokens = self.act(sites, self.segments.to_table(hidden))
            return self.segments.to_sequence(tokens, hidden.shape[-1])
        n_prefix = self.tower.n_prefix
        patches = hidden[:, n_prefix:]
        tokens = self.act(sites, patches)
        self.bias = self._attention_bias(hidden.dtype)
        if tokens is patches:
            return hidden
        return torch.cat([hidden[:, :n_prefix], tokens], dim=1) if n_prefix else tokens

    def act(self, sites: Sequence[Site], tokens: Tensor) -> Tensor:
        """Let the reducer decide on patch tokens ``[i, k, d]``, turn by turn, and apply it."""
        for site in sites:
            tokens = self.follow(site, self.decide(site, tokens), tokens, more=site != sites[-1])
        return tokens

    def decide(self, site: Site, tokens: Tensor) -> Selection:
        """What the reducer selects at ``site``, ready to be applied."""
        assert self.reducer is not None
        view, images, who = self._view(site, tokens), self.images, f"vision strategy '{self.reducer.name}'"
        if self.together is None:
            return self._decide(view, images.layout.grids, uniform=images.uniform, who=who)
        laid = Together.of(self.together, images.layout.grids, images.valid)
        chosen = self._decide(laid.shown(view), laid.grids, uniform=laid.even, who=who)
        return laid.apart(chosen, images.valid, who)

    def _decide(self, view: VisionView, grids: Sequence[tuple[int, int]], *, uniform: bool, who: str) -> Selection:
        """The same for a view whose rows have these grids: a reducer sees those of one grid at a time."""
        assert self.reducer is not None
        if len(set(grids)) == 1:
            selection = self.reducer.reduce(view)
            refuse_other(selection, view.valid.shape[0], who=who)
            # Where tokens stay in their places, so does the padding.
            unmoved = self.together is None and not moves(selection, view.n_tokens)
            return clean_selection(selection, view.valid, uniform=uniform or unmoved, who=who)
        parts = []
        for grid, rows in alike(grids, view.device):
            n = int(view.counts[rows].max())
            part = narrowed(view, grid, rows, n)
            even = bool(part.valid.all())
            parts.append((rows, clean_selection(self.reducer.reduce(part), part.valid, uniform=even, who=who)))
        return joined(parts, view.sizes)

    def follow(self, site: Site, selection: Selection, tokens: Tensor, *, more: bool = False) -> Tensor:
        """Apply a selection to tokens and table; ``more``: another turn at this place will look at its signals."""
        sizes = self.images.sizes
        if moves(selection, tokens.shape[1]):
            tokens, sizes = apply_selection(tokens, sizes, selection, cls_token=self.cls_token)
        self.images.apply(site, selection, sizes)
        if self.segments is not None and self.images.touched:
            self.segments.follow()
        read = self.signals.keys() & (self.lasting if site.layer is None or not more else self.lasting | {site.layer})
        index = selection.keep.clamp(min=0) if read else selection.keep
        # What was seen of a token before stays with the token that stands at its place.
        self.signals = {number: {name: carried(name, value, index) for name, value in self.signals[number].items()}
                        for number in read}  # fmt: skip
        return tokens

    def _view(self, site: Site, tokens: Tensor) -> VisionView:
        assert self.reducer is not None
        images, depth = self.images, len(self.tower.blocks)
        layer = site.layer if site.layer is not None else self.tower.feature_block
        signals, extra = split(self.signals.get(-1 if layer is None else layer, {}))
        signals["_elsewhere"] = {block: self.signals.get(block, {}) for block in self.reducer.looks_at(depth)
                                 if block is not None}  # fmt: skip
        if self.text is not None and site.kind == "projected":
            signals["_text_relevance"] = mean_cosine_with(tokens, self.text.embeds, self.text.valid)
        return VisionView(
            site=site,
            depth=depth,
            tokens=tokens,
            valid=images.valid,
            sizes=images.sizes,
            origin=images.origin,
            protected=images.protected,
            padded=not images.uniform,
            marked=images.marked,
            grid=images.grid,
            owners=images.layout.owners if images.kind == "image" else (),
            n_prefix=self.tower.n_prefix,
            has_cls=self.tower.has_cls,
            _cls_token=self.cls_token,
            _digest=images.digest if Signal.DIGEST in self.reducer.signals() else None,
            _extra=extra,
            _declared=extra_names(self.reducer.signals()),
            **signals,
        )

    def _attention_bias(self, dtype: torch.dtype) -> Tensor | None:
        """Additive mask ``[i, 1, 1, prefix + k]`` for the blocks to come: padding out, merged tokens by size."""
        assert self.reducer is not None
        images = self.images
        weighs = self.reducer.weighs_attention()
        if images.uniform and not weighs:
            return None
        rows, k = images.sizes.shape
        bias = images.sizes.new_zeros(rows, self.tower.n_prefix + k, dtype=dtype)
        tokens = bias[:, self.tower.n_prefix :]
        if weighs:
            torch.log(images.sizes, out=tokens)
        if not images.uniform:
            tokens.masked_fill_(~images.valid, _MASKED)
        return bias[:, None, None]
