"""The vision stage: lets a reducer act inside the tower and around the projector.

The tower runs on the shortened sequence. After the projector the survivors are put back into the slots of the units that
they stand at and all others are marked with NaN, so that the model's own code (segments of tiles, placeholder check, scatter)
runs untouched; the language stage drops the marked positions before the first layer.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokcomp.models.adapter import Call, Tower, TowerBlock
from tokcomp.runner.arguments import by_name
from tokcomp.runner.encoded import Encoded
from tokcomp.runner.encoding import Encoding
from tokcomp.runner.hooks import Hooks
from tokcomp.runner.images import Images, pixel_digest
from tokcomp.runner.segments import Segments
from tokcomp.runner.text import PromptText
from tokcomp.runner.together import groups_of
from tokcomp.runner.unmet import looks_inside, refuse_infinite, refuse_split_units, refuse_unmet
from tokcomp.runner.unneeded import probe, skip
from tokcomp.stages import VisionReducer
from tokcomp.types import Signal, Site

__all__ = ["VisionStage"]


class VisionStage:
    """Runs one reducer (or none) in one tower; ``encoded`` is called with the images of every tower call. ``idle``: nor has any
    other stage a strategy."""

    def __init__(
        self,
        tower: Tower,
        reducer: VisionReducer | None,
        encoded: Encoded,
        *,
        digests: bool,
        idle: bool = False,
        family: str = "this model",
        text: PromptText | None = None,
    ) -> None:
        self.tower, self.reducer, self.encoded, self.family, self.text = tower, reducer, encoded, family, text
        self.idle = idle
        self.digests = digests or (reducer is not None and Signal.DIGEST in reducer.signals())
        self.sites: tuple[Site, ...] = ()
        self.observed: frozenset[int] = frozenset()
        self.lasting: frozenset[int] = frozenset()
        if reducer is not None:
            self.who = f"vision strategy '{reducer.name}'"
            self.sites = reducer.sites(len(tower.blocks))
            refuse_unmet(tower, reducer, self.sites, self.family)
            # Merging in the middle of a block past the feature layer would change nothing that anybody sees.
            self.sites = tuple(site for site in self.sites if site.kind != "mid" or not self._is_late(site))
            self._look(reducer)
        self._reads_text = reducer is not None and Signal.TEXT_RELEVANCE in reducer.signals()
        self._local = threading.local()

    def _is_late(self, site: Site) -> bool:
        return site.layer is not None and site.layer > self.tower.feature_block

    # -- installation ------------------------------------------------------------------------------------------------

    def install(self, hooks: Hooks) -> None:
        tower = self.tower
        hooks.before(tower.module, self._begin)
        hooks.after(tower.module, self._note_blocks)
        hooks.after(tower.exit, self._after_projector)
        if self.reducer is None:
            return
        hooks.before(tower.entry, self._before_projector)
        for name in tower.late:
            hooks.wrap(self.encoded.adapter.multimodal, name, functools.partial(self._late, name))
        watched = self.watched
        if tower.segmented and (watched or self._acts_inside):
            for block in tower.blocks:
                hooks.before(block.module, self._repack)
            for branch in tower.branches:
                hooks.after(branch, self._after_branch)
        if watched:
            hooks.switch(tower.config)
        for number in sorted(watched):
            hooks.observe(tower.blocks[number].attention, self._observer(number))
        acting = (site.layer for site in self.sites if site.layer is not None)
        last = max([tower.feature_block, *self.observed, *acting])
        if Signal.CLS_TOKEN in self.reducer.signals() and tower.has_cls and not tower.sealed:
            hooks.after(tower.blocks[tower.feature_block].module, self._note_cls)
        for number, block in enumerate(tower.blocks):
            self._install_block(hooks, number, block, last)

    def _install_block(self, hooks: Hooks, number: int, block: TowerBlock, last_needed: int) -> None:
        if number > last_needed:
            hooks.replace_forward(block.module, skip)
            return
        earlier = any(site.layer is not None and site.layer < number for site in self.sites)
        if earlier and not self.tower.segmented:
            hooks.before(block.module, self._mask_merged)
        if number == last_needed and self._is_late(Site.block(number)):
            # Only this block's attention is wanted (key tokens); its output goes nowhere.
            hooks.replace_forward(block.module, probe(block))
        elif self._at(Site.mid(number)):
            hooks.replace_forward(block.module, self._halved(number, block))
        if self._at(Site.block(number)):
            hooks.after(block.module, self._after_block(number))

    def _at(self, place: Site) -> list[Site]:
        """The turns at one place, in order."""
        return [site for site in self.sites if site.place == place]

    @property
    def watched(self) -> frozenset[int]:
        """The blocks whose attention is looked at, or gets a mask while it runs."""
        if self.reducer is None or not (self.tower.segmented and self.reducer.weighs_attention()):
            return self.observed
        everywhere = self._acts_inside or bool(self.observed)
        return frozenset(range(len(self.tower.blocks)) if everywhere else ())

    @property
    def _acts_inside(self) -> bool:
        return any(site.layer is not None for site in self.sites)

    def _look(self, reducer: VisionReducer) -> None:
        """Which blocks are observed, and whose signals outlast the block itself."""
        if not looks_inside(reducer.signals()):
            return
        looks_at = reducer.looks_at(len(self.tower.blocks))
        elsewhere = {block for block in looks_at if block is not None}
        own = set(self.sites) if None in looks_at else set()
        features = {self.tower.feature_block for site in own if site.layer is None}
        lasting = elsewhere | features
        self.lasting = frozenset(lasting)
        self.observed = frozenset(lasting | {site.layer for site in own if site.layer is not None})

    def _note_cls(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._encoding.cls_token = (output[0] if isinstance(output, tuple) else output)[:, 0]

    # -- one tower call ----------------------------------------------------------------------------------------------

    @property
    def _encoding(self) -> Encoding:
        encoding: Encoding = self._local.encoding
        return encoding

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        by = by_name(module, args, kwargs)
        pixels = by.pop(next(iter(inspect.signature(module.forward).parameters)))
        kind, given = self.encoded.call
        self._local.encoding = None
        layout = self.tower.layout(Call(kind, pixels, by, given))
        self.encoded.check(kind, layout)
        if self._acts_inside:
            refuse_split_units(self.tower, layout, self.who, kind, self.family)
        images = Images.fresh(layout, pixels.device, kind)
        if self.digests:
            rows = pixels if layout.pixels is None else layout.pixels
            images.digest = torch.stack([pixel_digest(row) for row in rows])
        text = self.text.of(images) if self.text is not None and self._reads_text else None
        segments = together = None
        if self.reducer is not None:
            together = groups_of(self.reducer.scope(), images, self.text)
        if self.tower.segmented and self.reducer is not None:
            segments = Segments.fresh(images, weighs=self.reducer.weighs_attention())
        self._local.encoding = Encoding(self.tower, self.reducer, images, observed=self.observed, lasting=self.lasting,
                                        text=text, segments=segments, together=together)  # fmt: skip

    def _note_blocks(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        images = self._encoding.images
        images.blocks = len(self.tower.blocks), self.tower.n_prefix, len(images.cuts)

    def _repack(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        segments = self._encoding.segments
        assert segments is not None
        return args, segments.arguments(kwargs)

    def _after_branch(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Any:
        segments = self._encoding.segments
        return segments.filled(output, 0.0) if segments is not None and segments.images.touched else None

    def _observer(self, number: int) -> Callable[[Tensor, Tensor, float], Tensor | None]:
        return lambda query, key, scale: self._encoding.observe(number, query, key, scale)

    def _mask_merged(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        bias = self._encoding.bias
        if bias is None:
            return None
        if len(args) > 1:
            return (args[0], bias, *args[2:]), kwargs
        return args, {**kwargs, "attention_mask": bias}

    def _halved(self, number: int, block: TowerBlock) -> Callable[..., Tensor]:
        sites = self._at(Site.mid(number))

        def forward(hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
            if not self.tower.segmented:
                kwargs["attention_mask"] = attention_mask
            hidden = block.attend(hidden_states, **kwargs)
            return block.feed(self._encoding.shorten(sites, hidden))

        return forward

    def _after_block(self, number: int) -> Callable[..., Any]:
        sites = self._at(Site.block(number))
        late = self._is_late(sites[0])

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            encoding = self._encoding
            hidden = output[0] if isinstance(output, tuple) else output
            if late:
                encoding.late += [(site, encoding.decide(site, hidden[:, self.tower.n_prefix :])) for site in sites]
                return None
            hidden = encoding.shorten(sites, hidden)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    # -- around the projector ----------------------------------------------------------------------------------------

    def _before_projector(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        encoding = self._encoding
        if encoding.images.layout.late:
            return None
        features = encoding.unfolded(args[0])
        for site, selection in encoding.late:
            features = encoding.follow(site, selection, features)
        staying = encoding.images.settle()
        if staying is not None:
            features = encoding.follow(Site.features(), staying, features)
        features = encoding.act(self._at(Site.features()), features)
        return (encoding.folded(features, args[0]), *args[1:]), kwargs

    def _after_projector(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        encoding = self._encoding
        images = encoding.images
        self.encoded.take(images)
        if images.layout.late or self.idle:
            images.projected_tokens = torch.tensor(images.patches if images.layout.late else images.units)
            if not self.idle:
                refuse_infinite(output)
            return output
        projected = encoding.unfolded(output)
        images.projected_tokens = images.counts() if images.touched else torch.tensor(images.units)
        projected = encoding.act(self._at(Site.projected()), projected)
        real = projected if images.uniform else projected.masked_fill(~images.valid[..., None], 0.0)
        refuse_infinite(real)
        return encoding.filled(real, output) if images.touched else output

    def _late(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """A method of the model behind its projector that makes the units of some calls: the reducer acts on what it made."""

        @functools.wraps(original)
        def method(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            encoding: Encoding | None = getattr(self._local, "encoding", None)
            # Layouts run the method on numbers, before there is an encoding of theirs.
            if encoding is None or encoding.images.layout.late != name:
                return output
            units = encoding.act([*self._at(Site.features()), *self._at(Site.projected())], encoding.gathered(output))
            return encoding.returned(units, output) if encoding.images.touched else output

        return method
