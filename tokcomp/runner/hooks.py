"""Everything that is put on a model, and its undoing: hooks, instance forwards, attention implementations."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

__all__ = ["Attender", "AttentionObserver", "Hooks", "base_implementation"]

AttentionObserver = Callable[..., Tensor | None]
"""Called with the query ``[b, h, t, d]``, the keys ``[b, g, l, d]`` (rotary applied, cache included) and the scaling of one
attention call, before it runs; where the model has them also with ``softcap`` (of the logits) and ``sinks`` ``[h]``. What it
returns, if anything, is the additive mask of that call."""

Attender = Callable[[Tensor, Tensor, Tensor, float, dict[str, Any]], Tensor | None]
"""Called with query ``[b, h, t, d]``, keys, values ``[b, g, l, d]``, scaling and options of one attention call; what it returns
``[b, h, t, d]`` takes the place of the model's own attention, None leaves the call alone. It is asked before the module's
observer, which may see what it found, and whose mask it does not get."""

_PREFIX = "tokcomp_"
_OBSERVERS: WeakKeyDictionary[nn.Module, AttentionObserver] = WeakKeyDictionary()
_ATTENDERS: WeakKeyDictionary[nn.Module, Attender] = WeakKeyDictionary()


def base_implementation(config: Any) -> str:
    """The attention implementation that the model was loaded with, seen through ours while attached."""
    return (config._attn_implementation or "eager").removeprefix(_PREFIX)


def _observed(base: str) -> Callable[..., Any]:
    def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        # "eager" is no registered function: every modeling file has its own.
        run = ALL_ATTENTION_FUNCTIONS.get(base) or sys.modules[type(module).__module__].eager_attention_forward
        observer, attender = _OBSERVERS.get(module), _ATTENDERS.get(module)
        if observer is None and attender is None:
            return run(module, query, key, value, *args, **kwargs)
        scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
        output = None
        if attender is not None:
            output = attender(query, key, value, scale, {**kwargs, "attention_mask": args[0]} if args else kwargs)
        if observer is not None:
            softcap, sinks = kwargs.get("softcap"), kwargs.get("s_aux")
            logits = {} if softcap is None else {"softcap": softcap}
            mask = observer(query, key, scale, **(logits if sinks is None else {**logits, "sinks": sinks}))
            if mask is not None:
                args, kwargs = (), {**kwargs, "attention_mask": mask}
        if output is not None:
            return output.transpose(1, 2).contiguous(), None
        return run(module, query, key, value, *args, **kwargs)

    return attention


class Hooks:
    """Puts things on a model and takes every one of them off again, whatever happens in between."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def close(self) -> None:
        """Undo everything, last first."""
        self._stack.close()

    def before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """``hook(module, args, kwargs) -> (args, kwargs) | None`` before the module's forward."""
        self._stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """``hook(module, args, kwargs, output) -> output | None`` after it, ahead of any hook that records outputs (so
        that ``hidden_states`` hold what the next layer gets)."""
        self._stack.callback(module.register_forward_hook(hook, with_kwargs=True, prepend=True).remove)

    def replace_forward(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Set ``forward`` on this instance; the class is never touched."""
        self.set(module, "forward", forward)

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute of this instance."""
        had, before = name in vars(owner), vars(owner).get(name)
        setattr(owner, name, value)
        self._stack.callback(lambda: setattr(owner, name, before) if had else delattr(owner, name))

    def wrap(self, owner: Any, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Put ``wrapper(method)`` in the place of a method of this instance; the class is never touched."""
        self.set(owner, name, wrapper(getattr(owner, name)))

    def observe(self, attention: nn.Module, observer: AttentionObserver) -> None:
        """Show every call of this attention module to ``observer``; :meth:`switch` must cover its config."""
        if attention in _OBSERVERS:
            raise RuntimeError("an attention module can have one observer: detach the other session first")
        _OBSERVERS[attention] = observer
        self._stack.callback(_OBSERVERS.pop, attention, None)

    def attend(self, attention: nn.Module, attender: Attender) -> None:
        """Let ``attender`` take over calls of this attention module; :meth:`switch` must cover its config."""
        if attention in _ATTENDERS:
            raise RuntimeError("an attention module can have one attender: detach the other session first")
        _ATTENDERS[attention] = attender
        self._stack.callback(_ATTENDERS.pop, attention, None)

    def switch(self, config: Any) -> None:
        """Send the attention of the modules that share ``config`` through our wrapper, which calls the implementation
        that was set before."""
        base = base_implementation(config)
        name = _PREFIX + base
        if name not in ALL_ATTENTION_FUNCTIONS:
            ALL_ATTENTION_FUNCTIONS.register(name, _observed(base))
            if base in ALL_MASK_ATTENTION_FUNCTIONS:
                ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
        before = config._attn_implementation
        config._attn_implementation = name
        self._stack.callback(setattr, config, "_attn_implementation", before)
