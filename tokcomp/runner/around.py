"""What the language stage does around each decoder layer, and while its attention runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from tokcomp.models.adapter import Decoder
from tokcomp.runner.arguments import cache_in
from tokcomp.runner.attending import answered_layers, attender
from tokcomp.runner.eviction import Evictor
from tokcomp.runner.filtering import Filtering
from tokcomp.runner.hooks import Hooks
from tokcomp.runner.passes import Pass
from tokcomp.runner.prompts import Given

__all__ = ["AroundLayers", "State"]


class State(threading.local):
    """What one thread's pass has come to.

    Attributes:
        run: the pass that is under way.
        masks, counts, given: what its model was called with, see :class:`~tokcomp.runner.prompts.Given`.
        text: it reads text alone.
    """

    def __init__(self) -> None:
        self.run: Pass | None = None
        self.masks: dict[str, Tensor] = {}
        self.counts: dict[str, list[int]] = {}
        self.given = Given()
        self.text = False


class AroundLayers:
    """Hooks of the decoder's layers.

    Args:
        decoder: whose layers they are. ``state``: the pass that is under way.
        filtering, evictor: what acts between the layers, and on their caches.
    """

    def __init__(self, decoder: Decoder, state: State, filtering: Filtering | None, evictor: Evictor | None) -> None:
        self.decoder, self.state, self.filtering, self.evictor = decoder, state, filtering, evictor
        self.packing = frozenset() if evictor is None else evictor.packing
        """Layers whose entries may be packed."""

    def install(self, hooks: Hooks) -> None:
        depth = range(len(self.decoder.layers))
        watched = [number for number in depth if self.watches(number)]
        answered = {} if self.evictor is None else answered_layers(self.evictor)
        if watched or answered:
            hooks.switch(self.decoder.config)
        for number, policy in answered.items():
            hooks.attend(
                self.decoder.attentions[number], attender(lambda: self.state.run, self.decoder, policy, number)
            )
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

    def _before_layer(self, number: int) -> Callable[..., Any]:
        state, filtering = self.state, self.filtering
        filters = number > 0 and self._filters(number - 1)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            run = state.run
            if run is None:
                return None
            hidden: Tensor = args[0] if args else kwargs["hidden_states"]
            if not run.prefill:
                run.step(number, hidden, kwargs)
                return args, kwargs
            if filtering is not None and run.sequence is not None and run.sequence.n_vision:
                if number == 0:
                    filtering.prepare(run, hidden)
                elif filters:
                    hidden = filtering.apply(run, number - 1, hidden)
            run.enter(number, hidden, kwargs)
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        return hook

    def _add_deepstack(self, number: int) -> Callable[..., Any]:
        state = self.state

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            run = state.run
            if run is None or run.deepstack is None or run.sequence is None:
                return None
            return run.deepstack.add(number, output, run.sequence)

        return hook

    def _after_layer(self, number: int) -> Callable[..., None]:
        state, evictor = self.state, self.evictor
        assert evictor is not None

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            run = state.run
            if run is None or run.single:
                return
            cache = cache_in(kwargs)
            if cache is not None:
                evictor.after_layer(run, cache.layers[number])

        return hook

    def _observer(self, number: int) -> Callable[..., None]:
        state, filtering, evictor = self.state, self.filtering, self.evictor
        filters, evicts = self._filters(number, observing=True), self._evicts(number, observing=True)

        def observe(query: Tensor, key: Tensor, scale: float, **logits: Any) -> None:
            run = state.run
            if run is None:
                return
            if run.prefill and filters and filtering is not None:
                filtering.observe(run, number, query, key, scale, **logits)
            if evicts and evictor is not None:
                evictor.observe(run, number, query, key, scale, **logits)

        return observe
