"""A later turn of a conversation: tokens that follow on a compressed cache, with new images or without."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokcomp.errors import FeatureError
from tokcomp.models.adapter import Adapter
from tokcomp.runner.apply import gather_tokens, renumber
from tokcomp.runner.arguments import cache_in, kinds_in
from tokcomp.runner.cache import CompressedLayer, bound_request
from tokcomp.runner.entries import column
from tokcomp.runner.masks import Visibility
from tokcomp.runner.positions import in_planes
from tokcomp.runner.request import Request, Sequence
from tokcomp.runner.tables import appended, filled

__all__ = ["Follow", "LaterTurn", "generating", "own_part", "positions_of", "shown"]


def _own_columns(given: Mapping[str, Any], seen: int, *, generating: bool = False) -> int:
    """How many of the tokens that a model, or its ``generate()``, is called with follow on the ``seen`` ones in the cache.

    A model is called with those that follow; ``generate()`` also takes the whole conversation, which it recognises by a mask
    of its length.
    """
    tokens = given.get("input_ids") if given.get("inputs_embeds") is None else given["inputs_embeds"]
    assert tokens is not None
    mask = given.get("attention_mask")
    whole = generating and (mask is None or mask.shape[1] == tokens.shape[1])
    length: int = tokens.shape[1]
    return length - seen if whole else length


def own_part(given: dict[str, Any], *, generating: bool) -> dict[str, Any]:
    """The arguments of a call with those tokens, and their mask, alone that follow on its cache."""
    cache = cache_in(given)
    names = [name for name in ("input_ids", "inputs_embeds", "attention_mask") if given.get(name) is not None]
    if cache is None or names in ([], ["attention_mask"]):
        return given
    length = _own_columns(given, cache.get_seq_length(), generating=generating)
    return {**given, **{name: given[name][:, given[name].shape[1] - length :] for name in names}}


@dataclass(frozen=True)
class Follow:
    """The tokens that follow on a cache.

    Attributes:
        valid: which of them are no padding ``[b, t]``, None for all.
        earlier: which of the columns read before are no padding now ``[b, c]``, None where that is as it was. An answer that
            ended early is followed by padding.
    """

    valid: Tensor | None = None
    earlier: Tensor | None = None

    @classmethod
    def of(cls, mask: Tensor | None, tokens: Tensor, seen: int) -> Follow:
        """What a 2-D padding mask over the tokens ``[b, t, ...]``, or over the whole conversation, says. Costs one look at
        the device.

        Raises:
            FeatureError: a mask of another length.
        """
        t = tokens.shape[1]
        if mask is None:
            return cls()
        if mask.shape[1] not in (t, seen + t):
            raise FeatureError(
                f"an attention_mask of {mask.shape[1]} columns fits neither the {t} tokens of this turn nor the "
                f"{seen + t} of the conversation: give one column per token"
            )
        shown = mask.to(device=tokens.device, dtype=torch.bool)
        own, earlier = shown[:, -t:], shown[:, :-t]
        complete = torch.stack([own.all(), earlier.all()]).tolist()
        return cls(None if complete[0] else own, None if complete[1] or not earlier.shape[1] else earlier)

    @property
    def touches(self) -> bool:
        """Whether entries and padding have to be told apart, by a mask."""
        return self.valid is not None or self.earlier is not None

    def prepare(self, layer: CompressedLayer) -> None:
        """Make padding of the entries that an answer left behind its end, before a layer's pass."""
        if self.touches:
            layer.unpack()
        if self.earlier is not None:
            layer.hide(self.earlier)

    def start(self, request: Request, first: CompressedLayer, batch: int) -> Tensor:
        """Position of the first token of ``batch`` rows, in the model's own numbering ``[b|1]``; padding behind an answer has
        none."""
        start = first.following()
        if start.shape[0] > 1:  # generate() asks before it repeats the rows for its beams
            start = start[:: start.shape[0] // batch]
        return start if self.earlier is None else start - (self.unnumbered(request) - request.unnumbered)

    def unnumbered(self, request: Request, *, own: bool = False) -> int | Tensor:
        """How many columns behind the prompt are known to be padding, with ``own`` those of this turn as well."""
        found = request.unnumbered
        if self.earlier is not None:
            found = (~self.earlier[:, request.end :]).sum(dim=1)
        return found if self.valid is None or not own else found + (~self.valid).sum(dim=1)

    def first(self, positions: Tensor) -> Tensor:
        """Of position ids ``[b|1, t]`` those of each row's first token ``[b|1, 1]`` (of planes: of the first plane)."""
        plane = positions if positions.dim() == 2 else positions[0]
        if self.valid is None:
            return plane[:, :1]
        return plane.expand(self.valid.shape[0], -1).gather(1, self.valid.long().argmax(dim=1, keepdim=True))

    def positions(self, start: Tensor, length: int) -> Tensor:
        """Position ids of tokens that are numbered one by one ``[b|1, t]``."""
        if self.valid is not None:
            return start[:, None] + renumber(self.valid)
        return start[:, None] if length == 1 else start[:, None] + torch.arange(length, device=start.device)


def positions_of(adapter: Adapter, request: Request, first: CompressedLayer, follow: Follow, given: Mapping[str, Any],
                 masks: Mapping[str, Tensor], batch: int, length: int) -> Tensor:  # fmt: skip
    """Position ids of the tokens that follow, where the caller gave none: from where this very conversation has come to, and
    by the images among them where the model numbers by images.

    Args:
        adapter: the model. ``request``: the conversation's latest. ``first``: the first layer of its cache.
        follow: which tokens are padding.
        given: what the model is called with. ``masks``: per kind the placeholders ``[b, length]``, none where there are none.

    Returns:
        ``[b|1, length]``, or ``[p, b|1, length]`` planes.
    """
    start = follow.start(request, first, batch)
    if adapter.positions is not None and masks:
        return adapter.positions(given, masks, follow.valid) + start[:, None]
    return in_planes(follow.positions(start, length), adapter.decoder.planes)


def generating(adapter: Adapter, placeholders: Callable[..., dict[str, Tensor]]) -> Callable[..., Any]:
    """Wrapper of the model's method that numbers the tokens of ``generate()`` where numbers go by the images. The model goes by
    what it read last, and by all images of the conversation; on a compressed cache the numbers go by that cache and by the
    images that are new to it."""

    def wrapper(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def numbered(inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Any:
            cache, ids = cache_in(model_kwargs), model_kwargs.get("input_ids")
            request = bound_request(cache)
            if request is None:
                return method(inputs_tensor, model_kwargs)
            tokens = inputs_tensor if ids is None or not ids.shape[1] else ids
            name = "input_ids" if tokens.dim() == 2 else "inputs_embeds"
            given, seen = {**model_kwargs, "input_ids": None, name: tokens}, cache.get_seq_length()
            tokens, kinds = own_part(given, generating=True)[name], kinds_in(given)
            ids, embeds = (tokens, None) if name == "input_ids" else (None, tokens)
            masks = placeholders(ids, embeds, kinds) if kinds else {}
            follow = Follow.of(given.get("attention_mask"), tokens, seen)
            return positions_of(adapter, request, cache.layers[0], follow, given, masks, *tokens.shape[:2])

        return numbered

    return wrapper


@dataclass
class LaterTurn:
    """The cache that a later turn's prompt is read into.

    Attributes:
        layers: its layers.
        follow: what the turn says about padding.
        memo: what several layers share.
    """

    layers: list[CompressedLayer]
    follow: Follow
    memo: dict[Any, Any] = field(default_factory=dict)

    def kin(self, layer: CompressedLayer, sequence: Sequence) -> Any:
        """Layers of which this is equal hold the same tokens when ``sequence`` has been written; None: only this one does."""
        if layer.kin is None or layer.visible is not None:
            return None
        return layer.kin, id(sequence)

    def sees(
        self, number: int, request: Request, sequence: Sequence, blocks: Tensor | None, through: bool
    ) -> Visibility:
        """Which keys ``sequence`` may see in a layer: its own and those that are there, which come first."""
        layer = self.layers[number]
        layer.unpack()
        self.follow.prepare(layer)
        key = ("sees", self.kin(layer, sequence) or number, layer.length, layer.window)
        if key not in self.memo:
            self.memo[key] = self._sees(layer, request, sequence, blocks, through)
        seen: Visibility = self.memo[key]
        return seen

    def _sees(self, layer: CompressedLayer, request: Request, sequence: Sequence, blocks: Tensor | None,
              through: bool) -> Visibility:  # fmt: skip
        index, held, window = sequence.index[:, None], layer.length, layer.window
        valid = shown(layer)
        if valid is not None or sequence.valid is not None:
            own = torch.ones_like(index, dtype=torch.bool) if sequence.valid is None else sequence.valid[:, None]
            valid = appended(index.new_ones(1, 1, held).bool() if valid is None else valid, own)
        if window is not None and request.end <= window:
            window = None
        columns = None if window is None else appended(layer.full_index(), request.start + index)
        if blocks is not None:
            blocks = torch.nn.functional.pad(gather_tokens(blocks, sequence.index), (held, 0), value=-1)
        return Visibility(held + sequence.length, valid, window, columns, blocks, through)

    def arrive(self, number: int, request: Request, sequence: Sequence, vision: Tensor, rows: Tensor) -> Any:
        """Let a layer expect ``sequence``, with ``vision`` ``[b]`` vision tokens; returns what layers have in common that then
        hold the same tokens."""
        layer = self.layers[number]
        kin = self.kin(layer, sequence)
        if kin is not None:
            kin = self.memo.setdefault(("kin", kin), len(self.memo) + 1)
        past = request.past
        assert past is not None
        left = column(past.vision, layer.full_index())
        if layer.valid is not None:
            left = left & filled(layer.valid, layer.length)
        offset = sequence.offset if layer.offset is None else layer.offset
        if sequence.offset is not None and layer.offset is not None:
            key = ("offset", id(layer.offset), id(sequence))
            if key not in self.memo:  # the key is an id: keep the object that it names
                self.memo[key] = layer.offset, layer.offset + sequence.offset
            offset = self.memo[key][1]
        layer.expect(request, sequence, vision + left.sum(dim=-1).amax(dim=-1), rows, offset, kin)
        layer.visible = None
        return ("layer", number) if kin is None else kin


def shown(layer: CompressedLayer) -> Tensor | None:
    """Which of a layer's entries the coming pass may see ``[b, 1|g, l]``; None: all."""
    valid = None if layer.valid is None else filled(layer.valid, layer.length)
    if layer.visible is None:
        return valid
    return layer.visible if valid is None else layer.visible & valid
