"""FastV as published: the map of layer K-1 made whole, then tokens removed, or (its first variant) only masked.

Its code reads the map from the model's own outputs, which LLaMA's eager attention alone gives, and it gives them for all
layers or for none: ``eager`` is that path. Without it the map is made at the one layer where it is looked at, which is kinder to
the published code than its own implementation was.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines.layers import Decoder, attending_by_maps, splice

__all__ = ["PublishedFastV"]


class PublishedFastV:
    """A prefill of one sample.

    Args:
        model, inputs: the prompt. layer: the paper's K. keep_ratio: share of the vision tokens that is kept.
        removes: tokens leave the sequence; False: later layers get a mask that hides them, so that nothing is saved.
        eager: all layers attend by whole maps.
    """

    def __init__(
        self, model: Any, inputs: dict[str, Tensor], *, layer: int = 2, keep_ratio: float = 0.5, removes: bool = True,
        eager: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.inputs, self.cut, self.keep_ratio, self.removes = model, inputs, layer, keep_ratio, removes
        self.eager = eager

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        model, ids = self.model, self.inputs["input_ids"]
        features = torch.cat(
            list(model.model.get_image_features(pixel_values=self.inputs["pixel_values"]).pooler_output)
        )
        hidden, start, end = splice(model, ids, features, features.shape[0])
        with attending_by_maps(model.model.language_model.config) if self.eager else nullcontext():
            return self._decode(Decoder(model, hidden), hidden, start, end)

    def _decode(self, decoder: Decoder, hidden: Tensor, start: int, end: int) -> Tensor:
        mask = None
        for number in range(len(decoder.body.layers)):
            if number == self.cut - 1:
                hidden, attention = decoder.layer_with_map(number, hidden)
                scores = attention.float().mean(dim=1)[0, -1, start:end]
                keep = scores.topk(round((end - start) * self.keep_ratio)).indices.sort().values + start
                hidden, mask = self._cut(decoder, hidden, keep, start, end)
            else:
                hidden = decoder.layer(number, hidden, mask=decoder.causal if self.eager and mask is None else mask)
        self.kept, self.decoder = keep - start, decoder
        return decoder.logits(hidden)

    def _cut(
        self, decoder: Decoder, hidden: Tensor, keep: Tensor, start: int, end: int
    ) -> tuple[Tensor, Tensor | None]:
        places = torch.arange(hidden.shape[1], device=hidden.device)
        if not self.removes:
            hidden_keys = (places >= start) & (places < end) & ~torch.isin(places, keep)
            return hidden, decoder.causal.masked_fill(hidden_keys, torch.finfo(hidden.dtype).min)
        taken = torch.cat([places[:start], keep, places[end:]])
        hidden = hidden[:, taken]
        decoder.place(decoder.positions[:, taken], hidden)
        return hidden, None
