"""H2O as published: every layer's map made whole, its columns summed, the cache cut by the sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines.layers import Decoder, splice

__all__ = ["PublishedH2O"]


class PublishedH2O:
    """A prefill of one sample; heavy and recent entries are shares of the prompt, as in the authors' demonstration."""

    def __init__(self, model: Any, inputs: dict[str, Tensor], *, heavy: float = 0.1, recent: float = 0.1) -> None:
        self.model, self.inputs, self.shares = model, inputs, (heavy, recent)

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        model = self.model
        features = torch.cat(
            list(model.model.get_image_features(pixel_values=self.inputs["pixel_values"]).pooler_output)
        )
        hidden, _, _ = splice(model, self.inputs["input_ids"], features, features.shape[0])
        decoder, length = Decoder(model, hidden), hidden.shape[1]
        heavy, recent = (int(share * length) for share in self.shares)
        self.kept = []
        for number in range(len(decoder.body.layers)):
            hidden, attention = decoder.layer_with_map(number, hidden)
            groups = decoder.config.num_key_value_heads
            sums = attention.float().sum(dim=2).unflatten(1, (groups, -1)).sum(dim=2)  # (1, g, l)
            best = sums[..., : length - recent].topk(heavy, dim=-1).indices.sort(dim=-1).values
            latest = torch.arange(length - recent, length, device=best.device).expand(1, groups, recent)
            keep = torch.cat([best, latest], dim=-1)
            layer = decoder.cache.layers[number]
            index = keep[..., None].expand(-1, -1, -1, layer.keys.shape[-1])
            layer.keys, layer.values = layer.keys.gather(2, index), layer.values.gather(2, index)
            self.kept.append(keep)
        self.decoder = decoder
        return decoder.logits(hidden)
