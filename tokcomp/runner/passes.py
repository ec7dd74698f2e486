"""One forward pass of the decoder: the sequence that enters each layer, its positions, rotary tables and masks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokcomp.errors import UnsupportedError
from tokcomp.models.adapter import Decoder
from tokcomp.runner.cache import CompressedLayer
from tokcomp.runner.hooks import base_implementation
from tokcomp.runner.masks import layer_mask
from tokcomp.runner.request import Prompt, Request, Sequence

__all__ = ["Pass", "at_origin", "padding_of", "to_columns", "whole"]


@dataclass
class Pass:
    """One forward pass over a tracked request.

    Attributes:
        decoder: where it runs.
        request: whose tokens it reads.
        prefill: whether it reads the prompt.
        positions: position ids in the model's own numbering ``[b|1, l]``.
        sequence: what enters the next layer (prefill only).
        changed: the sequence is not what the model made its masks for.
        rotary: cos and sin of ``sequence``; None for those that the model computed.
        valid: entries that the layer now running may see ``[b, 1|g, l]``; None for all (decoding only).
        rows: attention rows that the filter asked for, of the layer that has just run; ``keys``: its keys.
        received: column sums that the policy asked for, of the layer that has just run.
        memo: masks and rotary tables that several layers share.
    """

    decoder: Decoder
    request: Request
    prefill: bool
    positions: Tensor
    sequence: Sequence | None = None
    changed: bool = False
    rotary: tuple[Tensor, Tensor] | None = None
    valid: Tensor | None = None
    rows: Tensor | None = None
    keys: Tensor | None = None
    received: Tensor | None = None
    memo: dict[Any, Any] = field(default_factory=dict)

    def enter(self, number: int, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        """Give layer ``number`` of a prefill what belongs to the sequence that enters it."""
        sequence = self.sequence
        assert sequence is not None
        self.request.layers.append(sequence)
        cache = kwargs.get("past_key_values")
        if cache is not None:
            cache.layers[number].expect(sequence, self.request.prompt.valid.shape[1])
        if self.rotary is not None:
            kwargs["position_embeddings"] = self.rotary
            kwargs["position_ids"] = sequence.positions
        if self.changed:
            kwargs["attention_mask"] = self._mask(hidden, sequence.length, sequence.valid, kin=id(sequence))

    def step(self, number: int, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        """Give layer ``number`` of a later pass what belongs to its own cache."""
        layers = kwargs["past_key_values"].layers
        layer: CompressedLayer = layers[number]
        total = layer.length + hidden.shape[1]
        valid, kin = layer.valid, layer.kin
        if layer.visible is not None:
            valid, kin = (layer.visible if valid is None else layer.visible & valid), None
        if valid is not None:
            valid = torch.cat([valid, valid.new_ones(*valid.shape[:-1], total - valid.shape[-1])], dim=-1)
        self.valid = valid
        kwargs["attention_mask"] = self._mask(hidden, total, valid, kin=("layer", number) if kin is None else kin)
        if layer.offset is not layers[0].offset:
            key = ("rotary", id(layer.offset))
            if key not in self.memo:
                own = layer.lag(self.positions)
                self.memo[key] = own, self.decoder.rotary(hidden, own)
            kwargs["position_ids"], kwargs["position_embeddings"] = self.memo[key]

    def _mask(self, hidden: Tensor, length: int, valid: Tensor | None, *, kin: Any) -> Any:
        """The mask of a layer; layers of one ``kin`` have the same one."""
        key = ("mask", kin, length)
        if key not in self.memo:
            config = self.decoder.config
            self.memo[key] = layer_mask(
                base_implementation(config), hidden.shape[1], length, valid, heads=config.num_attention_heads,
                dtype=hidden.dtype, device=hidden.device,
            )  # fmt: skip
        return self.memo[key]


def whole(prompt: Prompt, positions: Tensor, valid: Tensor | None, n_vision: int, uniform: bool) -> Sequence:
    """The sequence of all columns of a prompt."""
    b, length = prompt.valid.shape
    index = torch.arange(length, device=positions.device).expand(b, length)
    return Sequence(index=index, valid=valid, positions=positions, offset=None, n_vision=n_vision, uniform=uniform)


def at_origin(positions: Tensor, prompt: Prompt, mask: Tensor) -> Tensor:
    """Position ids ``[b, l]`` in which every vision token has that of the placeholder it stands at, wherever it was put.

    Args:
        positions: ``[b|1, l]``. ``mask``: image placeholders ``[b, l]``.
    """
    b, length = mask.shape
    own = positions.expand(b, length)
    # Placeholders in order, so that entry o of a row is the column of the sample's o-th placeholder.
    columns = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
    home = own.gather(1, columns.gather(1, prompt.origin.clamp(min=0)))
    return home.where(prompt.vision, own)


def padding_of(mask: Tensor | None, like: Tensor) -> tuple[Tensor, bool]:
    """Which tokens are real ``[b, l]``, and whether any is not.

    Raises:
        UnsupportedError: a mask of other than two dimensions.
    """
    if mask is None:
        return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device), False
    if mask.dim() != 2:
        raise UnsupportedError(
            f"an attention_mask of {mask.dim()} dimensions is not supported while tokcomp is attached: give the 2-D padding mask"
        )
    valid = mask.to(device=like.device, dtype=torch.bool)
    return valid, not bool(valid.all())


def to_columns(hidden: Tensor, sequence: Sequence, length: int) -> Tensor:
    """Put the last hidden states ``[b, k, d]`` back to the prompt's columns ``[b, length, d]``; dropped columns are 0, so
    that logits and labels stay aligned with ``input_ids``."""
    if sequence.valid is not None:
        hidden = hidden.masked_fill(~sequence.valid[..., None], 0.0)
    index = sequence.index[..., None].expand_as(hidden)
    return hidden.new_zeros(hidden.shape[0], length, hidden.shape[2]).scatter(1, index, hidden)
