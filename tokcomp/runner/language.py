"""The language stage: drops what the vision stage left empty, runs the prefill filter between the layers and the cache
policy after them, and gives every layer the positions, rotary tables and masks of its own sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from tokcomp.errors import UnsupportedError
from tokcomp.models.adapter import Adapter
from tokcomp.runner.adoption import adopt, adopt_text, holds_text, note_text
from tokcomp.runner.arguments import by_name, cache_in, cache_name, kinds_in, outputs_in, tokens_in
from tokcomp.runner.around import AroundLayers, State
from tokcomp.runner.cache import bound_request
from tokcomp.runner.deepstack import taken_over
from tokcomp.runner.encoded import Encoded
from tokcomp.runner.eviction import Evictor
from tokcomp.runner.filtering import Filtering
from tokcomp.runner.hooks import Hooks
from tokcomp.runner.masks import stand_in
from tokcomp.runner.passes import Pass, to_columns
from tokcomp.runner.positions import in_planes, next_after
from tokcomp.runner.prompts import Given, PromptReader
from tokcomp.runner.refusals import refuse_counting, refuse_no_cache, refuse_other_rows, wants_cache
from tokcomp.runner.request import Request
from tokcomp.runner.turns import Follow, LaterTurn, generating, positions_of
from tokcomp.stages import CachePolicy, PrefillFilter, VisionReducer

__all__ = ["LanguageStage"]


class LanguageStage:
    """Hooks of the decoder; state of a forward pass is per thread, state of a request lives in its cache."""

    def __init__(self, adapter: Adapter, reducer: VisionReducer | None, prefill: PrefillFilter | None,
                 policy: CachePolicy | None, encoded: Encoded,
                 remember: Callable[[Callable[[], Request]], None]) -> None:  # fmt: skip
        self.encoded = encoded
        self.adapter, self.decoder, self.remember = adapter, adapter.decoder, remember
        protects = reducer is not None and reducer.protects
        self.filtering = None if prefill is None else Filtering(prefill, adapter.decoder, protects=protects)
        self.evictor = None if policy is None else Evictor(policy, adapter.decoder, marked=protects)
        self._policy = None if policy is None else policy.name
        self.active = reducer is not None or prefill is not None or policy is not None
        self.reader = PromptReader(adapter, reducer, prefill, policy)
        self._cache_name = cache_name(adapter.decoder.module)
        self._local = State()
        self.around = AroundLayers(self.decoder, self._local, self.filtering, self.evictor)

    def install(self, hooks: Hooks) -> None:
        if self.adapter.multimodal is not None:
            hooks.before(self.adapter.multimodal, self._before_multimodal)
        numbers = "_prepare_position_ids_for_generation"
        if self.active and self.adapter.positions is not None and hasattr(self.adapter.model, numbers):
            hooks.wrap(self.adapter.model, numbers, generating(self.adapter, self.reader.placeholders))
        hooks.before(self.decoder.module, self._before_decoder)
        hooks.after(self.decoder.module, self._after_decoder)
        if self.active:
            self.around.install(hooks)

    # -- the pass as a whole -----------------------------------------------------------------------------------------

    def current(self) -> Pass | None:
        """The pass that is under way."""
        return self._local.run

    def _before_multimodal(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = by_name(module, args, kwargs)
        outputs, kinds = outputs_in(given), kinds_in(given)
        masks = self.reader.placeholders(given.get("input_ids"), given.get("inputs_embeds"), kinds) if kinds else {}
        # generate() encodes the images first and hands the features on, once or (without a cache) at every step.
        self._local.masks, self._local.counts = masks, self.encoded.expect(masks, outputs, active=self.active)
        blocks = None if self.adapter.blocks is None else self.adapter.blocks(given)
        if blocks is not None:  # of the whole conversation, where an image comes in a later turn
            blocks = blocks[:, -tokens_in(given).shape[1] :]
        self._local.given = Given(True, given.get("attention_mask"), blocks, given)

    def _before_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._local.run = None
        masks, counts, given = self._local.masks, self._local.counts, self._local.given
        self._local.masks, self._local.counts, self._local.given = {}, {}, Given()
        kwargs = by_name(module, args, kwargs)
        cache = cache_in(kwargs)
        request = bound_request(cache)
        image = bool(self.encoded.pending) and any(map(any, counts.values()))
        if request is not None:
            if not self.active:
                raise UnsupportedError(
                    "this cache was compressed: go on with it while a pipeline that compresses is attached"
                )
            return (), self._follow(request, cache, masks if image else {}, counts, given, kwargs)
        if not image and (self.adapter.tower is not None or not self.active):
            self._local.text = self.active and (cache is None or holds_text(cache))
            if self._local.text and cache is not None:
                note_text(cache, kwargs.get("position_ids"), tokens_in(kwargs).shape[1])
            return None  # text only: exactly as without tokcomp
        if self.active and cache is not None and cache.get_seq_length() > 0:
            if self.adapter.tower is None:
                return None  # read before tokcomp was attached: goes on as it began
            tokens = tokens_in(kwargs)
            shown = Follow.of(given.padding_in(kwargs), tokens, cache.get_seq_length()).earlier
            request = adopt_text(cache, self.decoder, self._policy, tokens, shown)
            return (), self._follow(request, cache, masks, counts, given, kwargs)
        return (), self._begin(masks, counts, given, kwargs)

    def _begin(self, masks: dict[str, Tensor], counts: dict[str, list[int]], given: Given,
               kwargs: dict[str, Any]) -> dict[str, Any]:  # fmt: skip
        seen = {**kwargs, "attention_mask": given.padding_in(kwargs)}
        images = self.encoded.release()
        if not self.active:  # nothing is changed, so that nothing is read before somebody asks the trace
            self.remember(self.reader.deferred(masks, counts, images, seen, depth=len(self.decoder.layers)))
            return kwargs
        request = self.reader.read(masks, counts, images, seen)
        self.remember(lambda: request)
        cache = cache_in(kwargs)
        if cache is None and wants_cache(self.decoder, kwargs):
            cache = DynamicCache(config=self.decoder.config)
        refuse_no_cache(cache, self._policy)
        if cache is not None:
            adopt(cache, request, self.decoder, self._policy)
        made = self._read(request, None, given, {**seen, self._cache_name: cache})
        run = self._local.run
        assert run is not None
        return made if run.changed else {**made, "attention_mask": kwargs.get("attention_mask")}

    def _read(self, request: Request, turn: LaterTurn | None, given: Given, seen: dict[str, Any]) -> dict[str, Any]:
        """Start the pass that reads a prompt; what the decoder gets."""
        if self.evictor is not None and self.evictor.decodes and request.entries:
            request.reads = [[] for _ in request.entries]
        sequence, seen, changed = self.reader.first_sequence(request, seen)
        seen, deepstack = taken_over(seen)
        self._local.run = Pass(self.decoder, request, True, sequence.positions, turn, sequence=sequence,
                               changed=changed or turn is not None, moved=turn is not None, blocks=given.blocks,
                               through=self.adapter.blocks_pass_window, deepstack=deepstack)  # fmt: skip
        return seen

    def _follow(self, request: Request, cache: Any, masks: dict[str, Tensor], counts: dict[str, list[int]], given: Given,
                kwargs: dict[str, Any]) -> dict[str, Any]:  # fmt: skip
        """Tokens that follow on a compressed cache, new images among them or not."""
        tokens, seen, first = tokens_in(kwargs), cache.get_seq_length(), cache.layers[0]
        b, t = tokens.shape[:2]
        refuse_other_rows(first, b)
        # A single token is a step of decoding, where nothing is asked of the device.
        follow = Follow.of(given.padding_in(kwargs), tokens, seen) if t > 1 else Follow()
        positions = kwargs.get("position_ids") if given.numbered(kwargs) else None
        if positions is None:
            positions = positions_of(self.adapter, request, first, follow, given.call, masks, b, t)
        # Every layer gets a mask of its own; a 4-D one is what keeps the model from building the full-length mask.
        own = {**kwargs, "attention_mask": stand_in(tokens.device)}
        if masks:
            turn = self.reader.read(masks, counts, self.encoded.release(),
                                    {**kwargs, "attention_mask": follow.valid, "position_ids": positions})  # fmt: skip
            turn.follows(request.passed(first.rows, seen), [each.entry() for each in cache.layers],
                         follow.first(in_planes(positions, self.decoder.planes)))  # fmt: skip
            self.remember(lambda: turn)
            made = self._read(turn, LaterTurn(cache.layers, follow), given,
                              {**own, "attention_mask": follow.valid, "position_ids": positions})  # fmt: skip
            return {**made, "attention_mask": own["attention_mask"]}
        if follow.touches:
            refuse_counting(follow, None if self.evictor is None else self.evictor.counting)
            for layer in cache.layers:
                layer.settle()
        for layer in cache.layers:
            layer.prepared, layer.attended = True, layer.number in self.around.packing
        positions = in_planes(positions, self.decoder.planes)
        first_positions, first_offset = first.lag(positions), first.offset
        self._local.run = Pass(self.decoder, request, False, positions, follow=follow, first_offset=first_offset,
                               blocks=given.blocks, through=self.adapter.blocks_pass_window,
                               single=not follow.touches)  # fmt: skip
        request.advance(next_after(positions), first.rows)
        request.unnumbered = follow.unnumbered(request, own=True)
        return {**own, "position_ids": first_positions}

    def _after_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        run, self._local.run = self._local.run, None
        text, self._local.text = self._local.text, False
        cache = cache_in(kwargs)
        if text and cache is None and not isinstance(output, tuple) and cache_in(output) is not None:
            note_text(cache_in(output), kwargs.get("position_ids"), 0)
        if run is not None and self.evictor is not None and cache is not None:
            self.evictor.after_pass(run, cache.layers)
        if run is None or not run.prefill or run.sequence is None:
            return None
        sequence, columns = run.sequence, run.request.prompt.valid
        if sequence.length == columns.shape[1] and not run.request.moved:
            return None
        aligned = to_columns(output[0], sequence, columns.shape[1])
        if isinstance(output, tuple):
            return (aligned, *output[1:])
        output.last_hidden_state = aligned
        return output
