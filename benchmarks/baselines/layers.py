"""A model taken apart into its blocks, the way published code runs it: whole attention maps where it looks at attention.

The code paths here were written from the papers and from descriptions of their code; nothing was copied. They make the same
selections as tokcomp's strategies (a test holds that), so that a difference in time is one of the code path.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from tokcomp.runner.arguments import cache_name

__all__ = ["Decoder", "attending_by_maps", "eager_map", "splice"]


def eager_map(attention: Any, config: Any, call: Any) -> tuple[Any, Tensor]:
    """``call()`` with the attention module computing its whole map; the result and the map ``[b, h, l, l]``."""
    maps: list[Tensor] = []
    handle = attention.register_forward_hook(lambda module, args, output: maps.append(output[1]))
    try:
        with attending_by_maps(config):
            return call(), maps[0]
    finally:
        handle.remove()


@contextmanager
def attending_by_maps(config: Any) -> Iterator[None]:
    """Attention modules of this config make their whole maps meanwhile."""
    before, config._attn_implementation = config._attn_implementation, "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


def splice(model: Any, input_ids: Tensor, features: Tensor, tokens: int) -> tuple[Tensor, int, int]:
    """Embeddings ``[1, l, d]`` of a prompt whose ``tokens`` image placeholders become ``features`` ``[n, d]``; where they
    begin and end."""
    start = int((input_ids[0] == model.config.image_token_id).nonzero()[0, 0])
    text = model.model.get_input_embeddings()
    before, after = text(input_ids[:, :start]), text(input_ids[:, start + tokens :])
    return torch.cat([before, features[None].to(before.dtype), after], dim=1), start, start + features.shape[0]


class Decoder:
    """The language model of one prompt, layer by layer."""

    def __init__(self, model: Any, hidden: Tensor) -> None:
        self.body = model.model.language_model
        self.head = model.lm_head
        self.config = self.body.config
        self.cache = DynamicCache(config=self.config)
        self._cache_name = cache_name(self.body.layers[0])
        self.number_anew(hidden)

    def number_anew(self, hidden: Tensor) -> None:
        """Positions 0, 1, 2... for ``hidden``."""
        self.place(torch.arange(hidden.shape[1], device=hidden.device)[None], hidden)

    def place(self, positions: Tensor, hidden: Tensor) -> None:
        """Give the sequence these positions, with its rotary tables and its causal mask."""
        self.positions = positions
        self.rotary = self.body.rotary_emb(hidden, position_ids=positions)
        length = hidden.shape[1]
        mask = torch.full((length, length), torch.finfo(hidden.dtype).min, device=hidden.device, dtype=hidden.dtype)
        self.causal = mask.triu(1)[None, None]

    def layer(self, number: int, hidden: Tensor, *, mask: Tensor | None = None, cached: bool = True) -> Tensor:
        """One layer with the model's own attention; ``mask`` additive, None: causal."""
        cache = {self._cache_name: self.cache} if cached else {}
        return self.body.layers[number](
            hidden,
            attention_mask=mask,
            position_embeddings=self.rotary,
            position_ids=self.positions,
            use_cache=cached,
            **cache,
        )

    def layer_with_map(self, number: int, hidden: Tensor, *, mask: Tensor | None = None, cached: bool = True) -> Any:
        """One layer with eager attention: its output and its map ``[b, h, l, l]``."""
        layer = self.body.layers[number]
        mask = self.causal if mask is None else mask
        return eager_map(layer.self_attn, self.config, lambda: self.layer(number, hidden, mask=mask, cached=cached))

    def logits(self, hidden: Tensor) -> Tensor:
        """The last row's logits ``[b, 1, v]``."""
        return self.head(self.body.norm(hidden)[:, -1:])
