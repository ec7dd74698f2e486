"""One call of a vision tower: what the reducer sees at each site, and what becomes of the tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokcomp.models.adapter import Tower
from tokcomp.ops.merging import apply_selection
from tokcomp.ops.scores import attention_rows
from tokcomp.runner.apply import clean_selection
from tokcomp.runner.images import Images
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
        late: what was decided past the feature layer; applied to the features when they come.
    """

    tower: Tower
    reducer: VisionReducer | None
    images: Images
    bias: Tensor | None = None
    signals: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    late: list[tuple[Site, Selection]] = field(default_factory=list)

    def observe(self, number: int, query: Tensor, key: Tensor, scale: float) -> None:
        """Take from one block's attention what the reducer asked for."""
        assert self.reducer is not None
        n_prefix = self.tower.n_prefix
        signals: dict[str, Tensor] = {}
        if Signal.KEYS in self.reducer.needs:
            signals["_keys"] = key.mean(dim=1)[:, n_prefix:]
        if Signal.CLS_ATTENTION in self.reducer.needs:
            rows = attention_rows(query[:, :, :1], key, scale=scale, mask=self.bias)
            signals["_cls_attention"] = rows[:, :, 0, n_prefix:]
        self.signals[number] = signals

    def shorten(self, site: Site, hidden: Tensor) -> Tensor:
        """Let the reducer act on a block's hidden states ``[i, prefix + k, d]``."""
        n_prefix = self.tower.n_prefix
        tokens = self.act(site, hidden[:, n_prefix:])
        self.bias = self._attention_bias(hidden.dtype)
        return torch.cat([hidden[:, :n_prefix], tokens], dim=1) if n_prefix else tokens

    def act(self, site: Site, tokens: Tensor) -> Tensor:
        """Let the reducer decide on patch tokens ``[i, k, d]`` and apply it."""
        return self.follow(site, self.decide(site, tokens), tokens)

    def decide(self, site: Site, tokens: Tensor) -> Selection:
        """What the reducer selects at ``site``, ready to be applied."""
        assert self.reducer is not None
        selection = self.reducer.reduce(self._view(site, tokens))
        who = f"vision strategy '{self.reducer.name}'"
        return clean_selection(selection, self.images.valid, uniform=self.images.uniform, who=who)

    def follow(self, site: Site, selection: Selection, tokens: Tensor) -> Tensor:
        """Apply a selection to tokens and table."""
        shortened, sizes = apply_selection(tokens, self.images.sizes, selection)
        self.images.apply(site, selection, sizes)
        return shortened

    def _view(self, site: Site, tokens: Tensor) -> VisionView:
        assert self.reducer is not None
        images = self.images
        layer = site.layer if site.layer is not None else self.tower.feature_block
        signals = dict(self.signals.get(-1 if layer is None else layer, {}))
        if "_cls_attention" in signals:
            signals["_cls_attention"] = signals["_cls_attention"].masked_fill(~images.valid[:, None], 0.0)
        return VisionView(
            site=site,
            depth=len(self.tower.blocks),
            tokens=tokens,
            valid=images.valid,
            sizes=images.sizes,
            origin=images.origin,
            protected=images.protected,
            grid=images.grid,
            n_prefix=self.tower.n_prefix,
            _digest=images.digest if Signal.DIGEST in self.reducer.needs else None,
            **signals,
        )

    def _attention_bias(self, dtype: torch.dtype) -> Tensor | None:
        """Additive mask ``[i, 1, 1, prefix + k]`` for the blocks to come: padding out, merged tokens by size."""
        assert self.reducer is not None
        images = self.images
        weighs = self.reducer.weighs_attention()
        if images.uniform and not weighs:
            return None
        bias = images.sizes.clamp(min=1).log() if weighs else torch.zeros_like(images.sizes)
        bias = bias.masked_fill(~images.valid, _MASKED)
        bias = torch.cat([bias.new_zeros(bias.shape[0], self.tower.n_prefix), bias], dim=1)
        return bias[:, None, None].to(dtype)
