"""One forward pass of the decoder: the sequence that enters each layer, its positions, rotary tables and masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokcomp.errors import UnsupportedError
from tokcomp.models.adapter import Decoder
from tokcomp.ops.packed import Packed
from tokcomp.runner.apply import gather_tokens
from tokcomp.runner.arguments import cache_in
from tokcomp.runner.cache import CompressedLayer
from tokcomp.runner.deepstack import Deepstack
from tokcomp.runner.hooks import base_implementation
from tokcomp.runner.masks import Visibility, layer_mask, over_heads
from tokcomp.runner.request import Prompt, Request, Sequence
from tokcomp.runner.steps import Share, shares
from tokcomp.runner.turns import Follow, LaterTurn

__all__ = ["Observed", "Pass", "padding_of", "to_columns", "whole"]


@dataclass(frozen=True)
class Observed:
    """What a cache policy asked to see of one layer's attention, see :class:`~tokcomp.CacheView`.

    Attributes:
        received: ``[b, g, l]``. ``rows``: the chunks of query rows, made on demand. ``queries``: ``[b, h, l, d]``.
        extra: signals of plug-ins ``[b, g, l]``.
    """

    received: Tensor | None = None
    rows: Callable[[], Iterator[tuple[Tensor, Tensor]]] | None = None
    queries: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Pass:
    """One forward pass over a tracked request.

    Attributes:
        decoder: where it runs.
        request: whose tokens it reads.
        prefill: whether it reads the prompt.
        positions: position ids in the model's own numbering ``[b|1, l]`` or ``[p, b|1, l]``.
        turn: the cache that the prompt is read into, where it holds earlier turns (prefill only).
        follow: which tokens of the pass are padding, of a later pass of several.
        sequence: what enters the next layer (prefill only).
        changed: the sequence is not what the model made its masks for.
        moved: nor what it made its rotary tables for.
        first_offset: how the first layer's numbering lags behind, as the pass begins (later passes only).
        blocks: ``[b, l]`` which of the pass's own tokens attend in both directions, see :class:`Visibility`; None: none.
        through: those blocks ignore a layer's window.
        single: nothing is to be done right behind a layer, whatever there is can wait for the end of the pass.
        sees: which keys the layer now running may see; ``mask``: the mask that it got for that (prefill only), or None.
        rows: attention rows that the filter asked for, of the layer that has just run; ``keys``: its keys;
            ``extra``: what plug-in signals made of it, per token of the sequence.
        noted: what each filter noted for its later layers, by the filter's id.
        packed: packed entries of the layer now running, which its attention has to read beside the cache's tensors.
        deepstack: features that the first layers add to the vision tokens' states (prefill only), or None.
        rotary: cos and sin of the layer now running (prefill only).
        received: what its keys receive of all rows ``[b, g, l]``, where its attention was made together with that.
        observed: what its policy asked to see of the attention of the layer that has just run.
        surveyed: per layer what its policy's survey found ``[b]`` (prefill only).
        stepped: layers about which the policy is yet to be asked, several at once, with what it asked to see of them.
        shares: what each layer of a later pass is given.
        asked: per layer the new token's query ``[b, h, 1, d]`` and the scale of its logits, where what its policy asked to see is
            found for several layers at once (later passes only). ``noticed``: per layer what was found by itself.
        memo: masks and rotary tables that several layers share.
    """

    decoder: Decoder
    request: Request
    prefill: bool
    positions: Tensor
    turn: LaterTurn | None = None
    follow: Follow = field(default_factory=Follow)
    sequence: Sequence | None = None
    changed: bool = False
    moved: bool = False
    first_offset: Tensor | None = None
    blocks: Tensor | None = None
    through: bool = False
    single: bool = False
    sees: Visibility = field(default_factory=lambda: Visibility(0))
    mask: Any = None
    rows: Tensor | None = None
    keys: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    noted: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    packed: Packed | None = None
    deepstack: Deepstack | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    received: Tensor | None = None
    observed: Observed | None = None
    surveyed: dict[int, Tensor] = field(default_factory=dict)
    stepped: list[tuple[CompressedLayer, Observed]] = field(default_factory=list)
    shares: dict[int, Share] = field(default_factory=dict)
    asked: dict[int, tuple[Tensor, float]] = field(default_factory=dict)
    noticed: dict[int, Observed] = field(default_factory=dict)
    memo: dict[Any, Any] = field(default_factory=dict)

    def counts(self) -> Tensor:
        """Tokens of each sample in the sequence that enters the next layer ``[b]``."""
        assert self.sequence is not None
        index, valid = self.sequence.index, self.sequence.valid
        return torch.full_like(index[:, 0], index.shape[1]) if valid is None else valid.sum(dim=1)

    def enter(self, number: int, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        """Give layer ``number`` of a prefill what belongs to the sequence that enters it."""
        sequence = self.sequence
        assert sequence is not None
        self.request.layers.append(sequence)
        cache, kin = cache_in(kwargs), id(sequence)
        if self.moved:
            kwargs["position_embeddings"] = self.tables(number, hidden)
        self.rotary = kwargs.get("position_embeddings")
        self.sees = self.sees_prompt(number)
        if cache is not None:
            name = ("vision", id(sequence))
            if name not in self.memo:
                self.memo[name] = sequence.vision.sum(dim=1)
            if "rows" not in self.memo:
                self.memo["rows"] = torch.arange(sequence.index.shape[0], device=sequence.index.device)
            vision, rows = self.memo[name], self.memo["rows"]
            if self.turn is None:
                cache.layers[number].expect(self.request, sequence, vision, rows, sequence.offset, kin)
            else:
                kin = self.turn.arrive(number, self.request, sequence, vision, rows)
        if self.changed:
            # Layers turn by the tables; from ids with gaps flash attention would take the row for packed sequences.
            kwargs["position_ids"] = None
            self.mask = kwargs["attention_mask"] = self.mask_for(hidden, self.sees, kin=kin)

    def go_on(self, sequence: Sequence) -> None:
        """The next layers run on ``sequence``, which was shortened; nobody needs the masks of the one before."""
        self.sequence, self.changed, self.moved = sequence, True, True
        self.memo = {key: value for key, value in self.memo.items() if key[0] != "mask"}

    def seen(self, query: Tensor) -> Tensor | None:
        """What the queries ``[b, h, t, d]``, the last ones of the layer now running in a prefill, see ``[b|1, 1|h, t, l]``; None:
        all. It is read off the layer's own mask, where that says so."""
        if self.mask is not None and self.mask.dim() == 4:
            shown: Tensor = self.mask[:, :, self.mask.shape[2] - query.shape[2] :] == 0
            return shown
        return over_heads(self.sees.last(query.shape[2], query.device), query.shape[1])

    def step(self, number: int, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        """Give layer ``number`` of a later pass what belongs to its own cache."""
        share = self.shares.get(number)
        if share is None:
            layers: list[CompressedLayer] = cache_in(kwargs).layers
            own = alike = [layer for layer in layers if layer.keys.device == hidden.device]
            if self.follow.touches:
                own = [layers[number]]
                self.follow.prepare(own[0])
            self.shares.update(shares(self, own, hidden, alike))
            if self.follow.valid is not None:
                own[0].follow(self.follow.valid, own[0].lag(self.positions))
            share = self.shares[number]
        changes, self.sees, self.packed = share
        kwargs.update(changes)

    def tables(self, number: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary tables of the sequence that enters a layer; layers that share a table have the same ones."""
        assert self.sequence is not None
        lag = None if self.turn is None else self.turn.layers[number].offset
        key = ("rotary", self.decoder.table(number), id(lag), id(self.sequence))
        if key not in self.memo:
            at = self.sequence.positions
            made = self.decoder.rotary(hidden, at if lag is None else at - lag[:, None], number)
            self.memo[key] = made, lag  # the key is an id: keep the object that it names
        tables: tuple[Tensor, Tensor] = self.memo[key][0]
        return tables

    def sees_prompt(self, number: int) -> Visibility:
        """Which keys layer ``number`` may see of the sequence that enters it."""
        sequence = self.sequence
        assert sequence is not None
        if self.turn is not None:
            return self.turn.sees(number, self.request, sequence, self.blocks, self.through)
        prompt, window = self.request.prompt, self.decoder.window(number)
        if window is not None and prompt.valid.shape[1] <= window:
            window = None  # it reaches over the whole prompt
        if window is None and self.blocks is None:
            return Visibility(sequence.length, sequence.valid)
        key = ("sees", window, id(sequence))
        if key not in self.memo:
            columns = None if window is None else sequence.index[:, None]
            blocks = None if self.blocks is None else gather_tokens(self.blocks, sequence.index)
            self.memo[key] = Visibility(sequence.length, sequence.valid, window, columns, blocks, self.through)
        sees: Visibility = self.memo[key]
        return sees

    def mask_for(self, hidden: Tensor, sees: Visibility, *, kin: Any, dtype: torch.dtype | None = None) -> Any:
        """The mask of a layer; layers of one ``kin`` hold the same tokens and, with equal windows, have the same one."""
        if hidden.shape[1] == 1 and sees.plain:
            return None  # a single row sees everything
        key = ("mask", kin, sees.length, sees.window)
        if key not in self.memo:
            config = self.decoder.config
            self.memo[key] = layer_mask(
                base_implementation(config), hidden.shape[1], sees, heads=config.num_attention_heads,
                dtype=dtype or hidden.dtype, device=hidden.device, masked=self.decoder.masked,
            )  # fmt: skip
        return self.memo[key]


def whole(prompt: Prompt, positions: Tensor) -> Sequence:
    """The sequence of all columns of a prompt."""
    b, length = prompt.valid.shape
    index = torch.arange(length, device=positions.device).expand(b, length)
    return Sequence(index=index, valid=prompt.present, positions=positions, offset=None, vision=prompt.vision,
                    texts=prompt.texts, counts=prompt.visions)  # fmt: skip


def padding_of(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Which tokens are real ``[b, l]``; None: all.

    Raises:
        UnsupportedError: a mask of other than two dimensions.
    """
    if mask is None:
        return None
    if isinstance(mask, dict) or mask.dim() != 2:
        what = "made for each kind of layer" if isinstance(mask, dict) else f"of {mask.dim()} dimensions"
        raise UnsupportedError(
            f"an attention_mask {what} is not supported while tokcomp is attached: give the 2-D padding mask"
        )
    return mask.to(device=like.device, dtype=torch.bool)


def to_columns(hidden: Tensor, sequence: Sequence, length: int) -> Tensor:
    """Put the last hidden states ``[b, k, d]`` back to the prompt's columns ``[b, length, d]``; dropped columns are 0, so
    that logits and labels stay aligned with ``input_ids``."""
    if sequence.valid is not None:
        hidden = hidden.masked_fill(~sequence.valid[..., None].to(hidden.device), 0.0)
    index = sequence.index[..., None].to(hidden.device).expand_as(hidden)
    return hidden.new_zeros(hidden.shape[0], length, hidden.shape[2]).scatter(1, index, hidden)
