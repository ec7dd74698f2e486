"""MustDrop as published: the whole tower with maps, and each pruning layer run twice, once for its output and once for its
map; one sample at a time, the batch's fewest windows merged in every tile."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines.layers import Decoder, eager_map, splice
from tokcomp.models.adapter import find_adapter
from tokcomp.ops.merging import apply_selection
from tokcomp.ops.pooling import merge_windows

__all__ = ["PublishedMustDrop"]


class PublishedMustDrop:
    """A prefill of one sample, the cache cut afterwards.

    Args:
        model, inputs: the prompt.
        threshold, key_ratio: of the tower's merge and of the key tokens.
        global_threshold, individual_threshold: of the filter after layers 2, 6, 10 and 14 of 32, scaled to the depth.
    """

    def __init__(self, model: Any, inputs: dict[str, Tensor], *, threshold: float, key_ratio: float,
                 global_threshold: float = 1.0, individual_threshold: float = 1.0) -> None:  # fmt: skip
        self.model, self.inputs = model, inputs
        self.threshold, self.key_ratio = threshold, key_ratio
        self.thresholds = global_threshold, individual_threshold

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        model = self.model
        features, key = self._encode()
        hidden, start, end = splice(model, self.inputs["input_ids"], features, self._placeholders())
        key = key + start
        decoder = Decoder(model, hidden)
        depth = len(decoder.body.layers)
        cuts = sorted({layer * depth // 32 for layer in (2, 6, 10, 14)})
        origin = torch.arange(hidden.shape[1], device=hidden.device)  # of each token, in the first layer's sequence
        alive = []
        for number in range(depth):
            alive.append(origin)
            output = decoder.layer(number, hidden)
            if number in cuts:
                _, attention = decoder.layer_with_map(number, hidden, cached=False)
                taken = self._filter(attention, start, end, key)
                end = start + int(((taken >= start) & (taken < end)).sum())
                key = torch.isin(taken, key).nonzero()[:, 0]
                output, origin = output[:, taken], origin[taken]
                decoder.number_anew(output)
            hidden = output
        self._compact(decoder, alive, origin, cuts[0])
        self.kept, self.decoder = origin, decoder
        return decoder.logits(hidden)

    def _placeholders(self) -> int:
        return int((self.inputs["input_ids"][0] == self.model.config.image_token_id).sum())

    def _encode(self) -> tuple[Tensor, Tensor]:
        """Projected tokens of all tiles ``[n, d]`` and the key tokens among them."""
        tower = find_adapter(self.model).tower
        assert tower is not None
        assert tower.feature_block is not None
        core = getattr(tower.module, "vision_model", tower.module)
        pixels = self.inputs["pixel_values"]
        hidden = core.pre_layrnorm(core.embeddings(pixels))
        for number, block in enumerate(tower.blocks):
            hidden, attention = eager_map(
                block.attention, core.config, lambda block=block, x=hidden: _states(block.module(x, None))
            )
            if number == 0:
                tokens = hidden[:, 1:]
                side = math.isqrt(tokens.shape[1])
                selection = merge_windows(
                    tokens, (side, side), (3, 3), self.threshold, order="published", batch_minimum=True
                )
                merged, _ = apply_selection(tokens, torch.ones(tokens.shape[:2], device=tokens.device), selection)
                hidden = torch.cat([hidden[:, :1], merged], dim=1)
            if number == tower.feature_block:
                features = hidden[:, 1:]
        n = features.shape[1]
        key = attention.float().mean(dim=1)[:, 0, 1:].topk(math.ceil(self.key_ratio * n)).indices  # (tiles, keys)
        projected = self.model.model.multi_modal_projector(features).flatten(0, 1)
        return projected, (key + n * torch.arange(len(key), device=key.device)[:, None]).flatten().sort().values

    def _filter(self, attention: Tensor, start: int, end: int, key: Tensor) -> Tensor:
        """Columns that go on."""
        seen = attention.float().mean(dim=1)[0, end:, start:end]  # text rows over vision tokens
        wanted, largest = seen.sum(dim=0), seen.amax(dim=0)
        important = (wanted >= self.thresholds[0] * wanted.sum()) | (largest >= self.thresholds[1])
        places = torch.arange(attention.shape[-1], device=attention.device)
        keep = (places < start) | (places >= end) | torch.isin(places, key)
        keep[start:end] |= important
        return places[keep]

    def _compact(self, decoder: Decoder, alive: list[Tensor], final: Tensor, first: int) -> None:
        """Cut the caches of the pruned layers to the tokens that survived all cuts."""
        for number, origin in enumerate(alive):
            if number >= first and len(origin) > len(final):
                index = torch.isin(origin, final).nonzero()[:, 0]
                layer = decoder.cache.layers[number]
                layer.keys, layer.values = layer.keys[:, :, index], layer.values[:, :, index]


def _states(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
