"""The language stage: drops what the vision stage left empty, runs the prefill filter between the layers and the cache
policy after them, and gives every layer the positions, rotary tables and masks of its own sequence."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from tokcomp.errors import UnsupportedError
from tokcomp.models.adapter import Adapter
from tokcomp.runner.adoption import adopt
from tokcomp.runner.arguments import by_name, cache_in, cache_name
from tokcomp.runner.cache import CompressedLayer, bound_request
from tokcomp.runner.deepstack import taken_over
from tokcomp.runner.encoded import Encoded
from tokcomp.runner.eviction import Evictor
from tokcomp.runner.filtering import Filtering
from tokcomp.runner.hooks import Hooks
from tokcomp.runner.packing import attend_packed
from tokcomp.runner.passes import Pass, to_columns
from tokcomp.runner.positions import in_planes, next_after
from tokcomp.runner.prompts import Given, PromptReader
from tokcomp.runner.request import Request
from tokcomp.stages import CachePolicy, PrefillFilter, VisionReducer

__all__ = ["LanguageStage"]


class LanguageStage:
    """Hooks of the decoder; state of a forward pass is per thread, state of a request lives in its cache."""

    def __init__(self, adapter: Adapter, reducer: VisionReducer | None, prefill: PrefillFilter | None,
                 policy: CachePolicy | None, encoded: Encoded, remember: Callable[[Request], None]) -> None:  # fmt: skip
        self.encoded = encoded
        self.adapter, self.decoder, self.remember = adapter, adapter.decoder, remember
        protects = reducer is not None and reducer.protects
        self.filtering = None if prefill is None else Filtering(prefill, adapter.decoder, protects=protects)
        self.evictor = None if policy is None else Evictor(policy, adapter.decoder, marked=protects)
        self.active = reducer is not None or prefill is not None or policy is not None
        self.reader = PromptReader(adapter, reducer, prefill, policy)
        self._cache_name = cache_name(adapter.decoder.module)
        self._local = threading.local()

    def install(self, hooks: Hooks) -> None:
        if self.adapter.multimodal is not None:
            hooks.before(self.adapter.multimodal, self._before_multimodal)
        hooks.before(self.decoder.module, self._before_decoder)
        hooks.after(self.decoder.module, self._after_decoder)
        if not self.active:
            return
        depth = range(len(self.decoder.layers))
        watched = [number for number in depth if self.watches(number)]
        packing = [number for number in depth if self.evictor is not None and self.evictor.packs(number)]
        if watched or packing:
            hooks.switch(self.decoder.config)
        for number in packing:
            hooks.attend(self.decoder.attentions[number], self._attend_packed)
        for number in watched:
            hooks.observe(self.decoder.attentions[number], self._observer(number))
        for number in depth:
            hooks.before(self.decoder.layers[number], self._before_layer(number))
            if number < self.decoder.deepstack:
                hooks.after(self.decoder.layers[number], self._add_deepstack(number))
            if self._evicts(number):
                hooks.after(self.decoder.layers[number], self._after_layer(number))

    def watches(self, number: int) -> bool:
        """Whether a layer's attention is looked at."""
        return self._filters(number, observing=True) or self._evicts(number, observing=True)

    def _filters(self, number: int, *, observing: bool = False) -> bool:
        filtering = self.filtering
        return filtering is not None and number in filtering.acting and (not observing or filtering.watches(number))

    def _evicts(self, number: int, *, observing: bool = False) -> bool:
        evictor = self.evictor
        return evictor is not None and number in evictor.policies and (evictor.observes(number) or not observing)

    # -- the pass as a whole -----------------------------------------------------------------------------------------

    @property
    def _pass(self) -> Pass | None:
        return getattr(self._local, "run", None)

    def _before_multimodal(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = by_name(module, args, kwargs)
        outputs = {
            kind: output for kind, output in (given.get("mm_encoder_outputs") or {}).items() if output is not None
        }
        masks: dict[str, Tensor] = {}
        pixels = {name for name, value in given.items() if name.startswith("pixel_values") and value is not None}
        if outputs or pixels:
            kinds = outputs.keys() | {"video" if name.endswith("videos") else "image" for name in pixels}
            masks = self.reader.placeholders(given.get("input_ids"), given.get("inputs_embeds"), kinds)
        # generate() encodes the images first and hands the features on, once or (without a cache) at every step.
        self._local.masks, self._local.counts = masks, self.encoded.expect(masks, outputs, active=self.active)
        blocks = None if self.adapter.blocks is None else self.adapter.blocks(given)
        self._local.given = Given(True, given.get("attention_mask"), blocks)

    def _before_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._local.run = None
        masks, counts = getattr(self._local, "masks", {}), getattr(self._local, "counts", {})
        given = getattr(self._local, "given", Given())
        self._local.masks, self._local.counts, self._local.given = {}, {}, Given()
        kwargs = by_name(module, args, kwargs)
        cache = cache_in(kwargs)
        request = bound_request(cache)
        image = bool(self.encoded.pending) and any(map(any, counts.values()))
        if request is not None:
            if image:
                raise UnsupportedError(
                    "a new image in a later turn on a compressed cache is not supported: start a new prompt"
                )
            return (), self._continue(request, cache, given, kwargs)
        if not image and (self.adapter.tower is not None or not self.active):
            return None  # text only: exactly as without tokcomp
        if cache is not None and cache.get_seq_length() > 0:
            if self.adapter.tower is None or not self.active:
                return None  # read before tokcomp was attached: goes on as it began
            raise UnsupportedError("this cache holds a prompt that was read without tokcomp: start with an empty cache")
        return (), self._begin(masks, counts, given, kwargs)

    def _begin(self, masks: dict[str, Tensor], counts: dict[str, list[int]], given: Given,
               kwargs: dict[str, Any]) -> dict[str, Any]:  # fmt: skip
        seen = {**kwargs, "attention_mask": given.padding_in(kwargs)}
        request = self.reader.read(masks, counts, self.encoded.release(), seen)
        self.remember(request)
        if not self.active:
            sequence = self.reader.untouched(request, seen)
            request.layers = [sequence] * len(self.decoder.layers)
            return kwargs
        cache = cache_in(kwargs)
        if cache is None and self._wants_cache(kwargs):
            cache = DynamicCache(config=self.decoder.config)
        self._refuse_half_measures(cache)
        if cache is not None:
            policy = None if self.evictor is None else self.evictor.name
            acts = self.evictor is not None and self.evictor.decodes
            adopt(cache, request, self.decoder, policy=policy, note_reads=acts)
        sequence, seen, changed = self.reader.first_sequence(request, {**seen, self._cache_name: cache})
        seen, deepstack = taken_over(seen)
        self._local.run = Pass(self.decoder, request, True, sequence.positions, sequence=sequence, changed=changed,
                               blocks=given.blocks, through=self.adapter.blocks_pass_window, deepstack=deepstack)  # fmt: skip
        return seen if changed else {**seen, "attention_mask": kwargs.get("attention_mask")}

    def _refuse_half_measures(self, cache: Any) -> None:
        """Refuse what would run, but not do what was asked."""
        if cache is None and self.evictor is not None:
            raise UnsupportedError(
                f"cache policy '{self.evictor.name}' has no cache to act on: run with use_cache=True, or leave it out"
            )

    def _wants_cache(self, kwargs: dict[str, Any]) -> bool:
        wanted = kwargs.get("use_cache")
        return bool(self.decoder.config.use_cache if wanted is None else wanted)

    def _continue(self, request: Request, cache: Any, given: Given, kwargs: dict[str, Any]) -> dict[str, Any]:
        tokens = kwargs["inputs_embeds"] if kwargs.get("inputs_embeds") is not None else kwargs["input_ids"]
        fresh = tokens.shape[1]
        mask = given.padding_in(kwargs)
        if mask is not None and fresh > 1 and not bool(mask[:, -fresh:].all()):
            raise UnsupportedError(
                "padding in a later turn on a compressed cache is not supported: batch turns of equal length"
            )
        first: CompressedLayer = cache.layers[0]
        positions = kwargs.get("position_ids")
        if positions is None:
            following = request.next_position if len(request.next_position) == 1 else request.next_position[first.rows]
            positions = following[:, None] + torch.arange(fresh, device=tokens.device)
        positions = in_planes(positions, self.decoder.planes)
        request.next_position = next_after(positions)
        self._local.run = Pass(self.decoder, request, False, positions, first_offset=first.offset,
                               blocks=given.blocks, through=self.adapter.blocks_pass_window)  # fmt: skip
        # Every layer gets a mask of its own; a 4-D one is what keeps the model from building the full-length mask.
        placeholder = torch.zeros(1, 1, 1, 1, device=tokens.device)
        return {**kwargs, "position_ids": first.lag(positions), "attention_mask": placeholder}

    def _after_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        run, self._local.run = self._pass, None
        cache = cache_in(kwargs)
        if run is not None and self.evictor is not None and cache is not None:
            self.evictor.after_pass(run, cache.layers)
        if run is None or not run.prefill or run.sequence is None:
            return None
        sequence, columns = run.sequence, run.request.prompt.valid
        if sequence.length == columns.shape[1] and run.request.prompt.stands is None:
            return None
        aligned = to_columns(output[0], sequence, columns.shape[1])
        if isinstance(output, tuple):
            return (aligned, *output[1:])
        output.last_hidden_state = aligned
        return output

    # -- around each layer -------------------------------------------------------------------------------------------

    def _before_layer(self, number: int) -> Callable[..., Any]:
        packs = self.evictor is not None and self.evictor.packs(number)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            run = self._pass
            if run is None:
                return None
            hidden: Tensor = args[0] if args else kwargs["hidden_states"]
            if not run.prefill:
                run.step(number, hidden, kwargs)
                cache_in(kwargs).layers[number].attended = packs
                return args, kwargs
            if self.filtering is not None and run.sequence is not None and run.sequence.n_vision:
                if number == 0:
                    self.filtering.prepare(run, hidden)
                elif self._filters(number - 1):
                    hidden = self.filtering.apply(run, number - 1, hidden)
            run.enter(number, hidden, kwargs)
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        return hook

    def _add_deepstack(self, number: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            run = self._pass
            if run is None or run.deepstack is None or run.sequence is None:
                return None
            return run.deepstack.add(number, output, run.sequence)

        return hook

    def _after_layer(self, number: int) -> Callable[..., None]:
        evictor = self.evictor
        assert evictor is not None

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            run, cache = self._pass, cache_in(kwargs)
            if run is not None and cache is not None:
                evictor.after_layer(run, cache.layers[number])

        return hook

    def _attend_packed(self, query: Tensor, key: Tensor, value: Tensor, scale: float, options: dict[str, Any]) -> Any:
        run = self._pass
        return None if run is None else attend_packed(run, query, key, value, scale, options)

    def _observer(self, number: int) -> Callable[..., None]:
        filters, evicts = self._filters(number, observing=True), self._evicts(number, observing=True)

        def observe(query: Tensor, key: Tensor, scale: float, **logits: Any) -> None:
            run = self._pass
            if run is None:
                return
            if run.prefill and filters and self.filtering is not None:
                self.filtering.observe(run, number, query, key, scale, **logits)
            if evicts and self.evictor is not None:
                self.evictor.observe(run, number, query, key, scale, **logits)

        return observe
