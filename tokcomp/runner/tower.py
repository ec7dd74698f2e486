"""The vision stage: lets a reducer act inside the tower and around the projector.

The tower runs on the shortened sequence. After the projector the survivors are put back into the first placeholder slots
of their image and the empty slots are marked with NaN, so that the model's own splicing code (placeholder check, scatter)
runs untouched; the language stage drops the marked positions before the first layer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokcomp.errors import CompatibilityError, FeatureError
from tokcomp.models.adapter import Tower, TowerBlock
from tokcomp.ops.merging import apply_selection
from tokcomp.ops.scores import attention_rows
from tokcomp.runner.apply import clean_selection
from tokcomp.runner.hooks import Hooks
from tokcomp.runner.images import Images, pixel_digest
from tokcomp.stages import VisionReducer
from tokcomp.types import Selection, Signal, Site, VisionView

__all__ = ["VisionStage"]

_MASKED = torch.finfo(torch.float16).min  # large enough for every dtype's softmax, finite in all of them


class VisionStage:
    """Runs one reducer in one model; :attr:`encoded` takes the images of every tower call."""

    def __init__(self, tower: Tower, reducer: VisionReducer | None, *, digests: bool,
                 encoded: Callable[[Images], None]) -> None:  # fmt: skip
        self.tower, self.reducer, self.encoded = tower, reducer, encoded
        self.digests = digests or (reducer is not None and Signal.DIGEST in reducer.needs)
        self.sites: tuple[Site, ...] = ()
        if reducer is not None:
            self.sites = reducer.sites(len(tower.blocks))
            self._refuse_unmet(reducer)
            # Merging in the middle of a block past the feature layer would change nothing that anybody sees.
            self.sites = tuple(site for site in self.sites if site.kind != "mid" or not self._is_late(site))
        self._local = threading.local()

    def _refuse_unmet(self, reducer: VisionReducer) -> None:
        depth, who = len(self.tower.blocks), f"vision strategy '{reducer.name}'"
        if Signal.CLS_ATTENTION in reducer.needs and not self.tower.has_cls:
            raise CompatibilityError(
                f"{who} needs the attention of a CLS token, and this vision tower has none; use a strategy without that "
                "need (`tokcomp list vision` shows the needs of each)"
            )
        for site in self.sites:
            if site.layer is None:
                continue
            if not 0 <= site.layer < depth:
                raise CompatibilityError(
                    f"{who} acts at {site}, but the vision tower has {depth} blocks (0..{depth - 1})"
                )
            if self.tower.feature_block is None:
                raise CompatibilityError(
                    f"{who} acts at {site}, but this model mixes the features of several tower layers; use a strategy that "
                    "acts on the features or after the projector"
                )

    # -- installation ------------------------------------------------------------------------------------------------

    def install(self, hooks: Hooks) -> None:
        tower = self.tower
        hooks.before(tower.module, self._begin)
        hooks.after(tower.module, self._count_blocks)
        hooks.after(tower.projector, self._after_projector)
        if self.reducer is None:
            return
        hooks.before(tower.projector, self._before_projector)
        in_tower = [site for site in self.sites if site.layer is not None]
        if self._observed_blocks():
            hooks.switch(tower.config)
        for number in self._observed_blocks():
            hooks.observe(tower.blocks[number].attention, self._observer(number))
        last_needed = max([tower.feature_block or 0, *(site.layer or 0 for site in in_tower)])
        for number, block in enumerate(tower.blocks):
            self._install_block(hooks, number, block, last_needed)

    def _install_block(self, hooks: Hooks, number: int, block: TowerBlock, last_needed: int) -> None:
        feature_block = self.tower.feature_block
        if feature_block is not None and number > last_needed:
            hooks.replace_forward(block.module, _skip)
            return
        if any(site.layer is not None and site.layer < number for site in self.sites) or Site.mid(number) in self.sites:
            hooks.before(block.module, self._mask_merged)
        if feature_block is not None and number > feature_block:
            # Only this block's attention is wanted (key tokens); its output goes nowhere.
            hooks.replace_forward(block.module, _probe(block))
        elif Site.mid(number) in self.sites:
            hooks.replace_forward(block.module, self._halved(number, block))
        if Site.block(number) in self.sites:
            hooks.after(block.module, self._after_block(number))

    def _observed_blocks(self) -> tuple[int, ...]:
        assert self.reducer is not None
        if not self.reducer.needs & {Signal.KEYS, Signal.CLS_ATTENTION}:
            return ()
        layers = {site.layer if site.layer is not None else self.tower.feature_block for site in self.sites}
        if None in layers:
            raise CompatibilityError(
                f"vision strategy '{self.reducer.name}' needs the tower's attention, but this model mixes several layers"
            )
        return tuple(sorted(layer for layer in layers if layer is not None))

    # -- one tower call ----------------------------------------------------------------------------------------------

    @property
    def _images(self) -> Images:
        return self._local.images

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pixels = args[0] if args else kwargs["pixel_values"]
        images = Images.fresh(pixels.shape[0], self.tower.grid(pixels), pixels.device)
        if self.digests:
            images.digest = pixel_digest(pixels)
        self._local.images = images
        self._local.signals = {}
        self._local.bias = None
        self._local.late = []

    def _count_blocks(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        images, n_prefix = self._images, self.tower.n_prefix
        entering: list[Tensor | int] = []
        current: Tensor | int = images.n_patches + n_prefix
        changes = {site.layer: source for site, source in images.history if site.layer is not None}
        for number in range(len(self.tower.blocks)):
            entering.append(current)
            if number in changes:
                current = (changes[number].max(dim=1).values + 1) + n_prefix
        images.block_tokens = entering

    def _observer(self, number: int) -> Callable[[Tensor, Tensor, float], None]:
        assert self.reducer is not None
        needs, n_prefix = self.reducer.needs, self.tower.n_prefix

        def observe(query: Tensor, key: Tensor, scale: float) -> None:
            signals: dict[str, Tensor] = {}
            if Signal.KEYS in needs:
                keys = key.mean(dim=1)
                signals["_keys"], signals["_prefix_keys"] = keys[:, n_prefix:], keys[:, :n_prefix]
            if Signal.CLS_ATTENTION in needs:
                rows = attention_rows(query[:, :, :1], key, scale=scale, mask=self._local.bias)
                signals["_cls_attention"] = rows[:, :, 0, n_prefix:]
            self._local.signals[number] = signals

        return observe

    def _mask_merged(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bias = self._local.bias
        if bias is None:
            return None
        if len(args) > 1:
            return (args[0], bias, *args[2:]), kwargs
        return args, {**kwargs, "attention_mask": bias}

    def _halved(self, number: int, block: TowerBlock) -> Callable[..., Tensor]:
        def forward(hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
            hidden = block.attend(hidden_states, attention_mask=attention_mask, **kwargs)
            return block.feed(self._shorten(Site.mid(number), hidden))

        return forward

    def _after_block(self, number: int) -> Callable[..., Any]:
        site = Site.block(number)
        blind = self.tower.feature_block is not None and number > self.tower.feature_block

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            if blind:  # past the feature layer: decide now, apply to the features when they come
                self._local.late.append(self._decide(site, hidden[:, self.tower.n_prefix :]))
                return None
            hidden = self._shorten(site, hidden)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    # -- deciding and applying ---------------------------------------------------------------------------------------

    def _view(self, site: Site, tokens: Tensor) -> VisionView:
        images = self._images
        layer = site.layer if site.layer is not None else self.tower.feature_block
        signals = dict(self._local.signals.get(layer, {}))
        attention = signals.get("_cls_attention")
        if attention is not None:
            signals["_cls_attention"] = attention.masked_fill(~images.valid[:, None], 0.0)
        assert self.reducer is not None
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

    def _decide(self, site: Site, tokens: Tensor) -> Selection:
        assert self.reducer is not None
        images = self._images
        selection = self.reducer.reduce(self._view(site, tokens))
        return clean_selection(
            selection, images.valid, uniform=images.uniform, who=f"vision strategy '{self.reducer.name}'"
        )

    def _follow(self, site: Site, selection: Selection, tokens: Tensor) -> Tensor:
        shortened, sizes = apply_selection(tokens, self._images.sizes, selection)
        self._images.apply(site, selection, sizes)
        return shortened

    def _shorten(self, site: Site, hidden: Tensor) -> Tensor:
        n_prefix = self.tower.n_prefix
        tokens = hidden[:, n_prefix:]
        tokens = self._follow(site, self._decide(site, tokens), tokens)
        self._local.bias = self._attention_bias(hidden)
        return torch.cat([hidden[:, :n_prefix], tokens], dim=1) if n_prefix else tokens

    def _attention_bias(self, hidden: Tensor) -> Tensor | None:
        """Additive mask ``[i, 1, 1, prefix + k]`` for the blocks to come: padding out, merged tokens by size."""
        assert self.reducer is not None
        images = self._images
        weighs = self.reducer.weighs_attention()
        if images.uniform and not weighs:
            return None
        bias = images.sizes.clamp(min=1).log() if weighs else torch.zeros_like(images.sizes)
        bias = bias.masked_fill(~images.valid, _MASKED)
        bias = torch.cat([bias.new_zeros(bias.shape[0], self.tower.n_prefix), bias], dim=1)
        return bias[:, None, None].to(hidden.dtype)

    # -- around the projector ----------------------------------------------------------------------------------------

    def _before_projector(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        features = args[0]
        for selection, site in zip(self._local.late, [s for s in self.sites if self._is_late(s)], strict=True):
            features = self._follow(site, selection, features)
        if Site.features() in self.sites:
            features = self._follow(Site.features(), self._decide(Site.features(), features), features)
        return (features, *args[1:]), kwargs

    def _is_late(self, site: Site) -> bool:
        last = self.tower.feature_block
        return site.layer is not None and last is not None and site.layer > last

    def _after_projector(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        images = self._images
        if Site.projected() in self.sites:
            output = self._follow(Site.projected(), self._decide(Site.projected(), output), output)
        real = output if images.uniform else output.masked_fill(~images.valid[..., None], 0.0)
        if not bool(torch.isfinite(real).all()):
            raise FeatureError(
                "the image features hold NaN or Inf: check the pixel values and the weights (dtype overflow?)"
            )
        self.encoded(images)
        if not images.touched:
            return output
        slots = output.new_full((*output.shape[:-2], images.n_patches, output.shape[-1]), torch.nan)
        slots[:, : output.shape[1]] = output.masked_fill(~images.valid[..., None], torch.nan)
        return slots


def _skip(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A block after the last one that anybody needs: its output would go nowhere."""
    return hidden_states


def _probe(block: TowerBlock) -> Callable[..., Tensor]:
    def forward(hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        block.attend(hidden_states, attention_mask=attention_mask, **kwargs)
        return hidden_states

    return forward
