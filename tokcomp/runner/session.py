"""One pipeline on one model: puts the hooks on, takes them off, keeps the trace."""

from __future__ import annotations

from types import TracebackType
from weakref import WeakSet

from torch import nn

from tokcomp.errors import CompatibilityError, UnsupportedError
from tokcomp.models.adapter import Adapter, find_adapter
from tokcomp.runner.borders import Borders
from tokcomp.runner.checkpointing import Checkpointing
from tokcomp.runner.devices import layer_devices
from tokcomp.runner.encoded import Encoded
from tokcomp.runner.hooks import Hooks
from tokcomp.runner.language import LanguageStage
from tokcomp.runner.preflight import Preflight
from tokcomp.runner.text import PromptText
from tokcomp.runner.tower import VisionStage
from tokcomp.runner.trace import Trace
from tokcomp.stages import CachePolicy, PrefillFilter, VisionReducer
from tokcomp.types import Signal

__all__ = ["Session"]

_ATTACHED: WeakSet[nn.Module] = WeakSet()


class Session:
    """Context manager that :meth:`tokcomp.Pipeline.attach` returns; entering it gives the :class:`Trace`."""

    def __init__(self, model: nn.Module, vision: VisionReducer | None, prefill: PrefillFilter | None,
                 cache: CachePolicy | None) -> None:  # fmt: skip
        self.model = model
        self.strategies = vision, prefill, cache
        self.trace = Trace()
        self._hooks: Hooks | None = None

    def __enter__(self) -> Trace:
        vision, prefill, cache = self.strategies
        _refuse_compiled(self.model)
        adapter = find_adapter(self.model)
        if adapter.decoder.module in _ATTACHED:
            raise UnsupportedError("a pipeline is attached to this model already: leave its `with` block first")
        if adapter.tower is None and (vision is not None or prefill is not None):
            names = " and ".join(f"{s.stage} '{s.name}'" for s in (vision, prefill) if s is not None)
            raise CompatibilityError(
                f"{names} act on image tokens, and {type(self.model).__name__} takes no images: use a cache policy only"
            )
        encoded = Encoded(adapter)
        devices = layer_devices(adapter) if any(strategy is not None for strategy in self.strategies) else None
        language = LanguageStage(adapter, vision, prefill, cache, encoded, self.trace.remember)
        tower = text = None
        if vision is not None and (Signal.TEXT_RELEVANCE in vision.signals() or vision.scope() == "prompt"):
            text = PromptText(adapter, language.reader.placeholders, f"vision strategy '{vision.name}'")
        if adapter.tower is not None:
            digests = language.reader.digests
            tower = VisionStage(adapter.tower, vision, encoded, digests=digests, idle=not language.active,
                                family=adapter.family, text=text)  # fmt: skip
        hooks = Hooks()
        try:
            if language.active:
                policy = None if cache is None else cache.name
                Preflight(adapter, encoded, language.reader.placeholders, policy).install(hooks)
                if devices is not None:
                    Borders(adapter.decoder.layers, devices, language.current).install(hooks)
                Checkpointing(adapter, _watched(adapter, language, tower), policy).install(hooks)
            if text is not None:
                text.install(hooks)
            if tower is not None:
                encoded.install(hooks)
                tower.install(hooks)
            language.install(hooks)
        except BaseException:
            hooks.close()
            raise
        self._hooks = hooks
        _ATTACHED.add(adapter.decoder.module)
        self._decoder = adapter.decoder.module
        return self.trace

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._hooks is not None:
            self._hooks.close()
            self._hooks = None
            _ATTACHED.discard(self._decoder)


def _watched(adapter: Adapter, language: LanguageStage, tower: VisionStage | None) -> set[nn.Module]:
    """The layers and blocks whose attention is looked at."""
    layers = {layer for number, layer in enumerate(adapter.decoder.layers) if language.around.watches(number)}
    return layers | (set() if tower is None else {tower.tower.blocks[number].module for number in tower.watched})


def _refuse_compiled(model: nn.Module) -> None:
    """Raise for ``torch.compile(model)`` and for a model one of whose modules was compiled in place."""
    compiled = [
        name or type(model).__name__ for name, module in model.named_modules() if module._compiled_call_impl is not None
    ]
    if hasattr(model, "_orig_mod") or compiled:
        which = type(getattr(model, "_orig_mod", model)).__name__ if not compiled else compiled[0]
        raise UnsupportedError(
            f"{which} was compiled (torch.compile), and compression changes the lengths from layer to layer and from prompt to "
            "prompt, so that every call would compile anew: attach to the model as it was before torch.compile"
        )
