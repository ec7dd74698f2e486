"""Signals that a plug-in brings along: computed by a function of its own, only where a strategy needs them.

    from tokcomp import register_signal

    CONTRAST = register_signal("contrast", stage="vision", from_view=contrast)       # a function of the view
    WIDTH_OF_QUERY = register_signal("query_norm", stage="vision", from_attention=query_norm)   # of a layer's attention

A strategy lists the signal in its ``needs``, as it does :class:`~tokcomp.Signal` s, and reads it by ``view.read(CONTRAST)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from tokcomp.errors import PluginError
from tokcomp.signals import Signal, UndeclaredSignalError

__all__ = [
    "Attention",
    "PluginSignal",
    "SignalReader",
    "attended",
    "expanded",
    "extra_names",
    "made_up",
    "register_signal",
]

Stage = Literal["vision", "prefill", "cache"]


@dataclass(frozen=True)
class Attention:
    """One layer's attention as it is about to run: what built-in signals are computed from.

    Attributes:
        query, key: rotated where the model rotates them, ``[b, h, t, d]`` and ``[b, g, l, d]``. Vision: of the tower's tokens,
            prefix (CLS) included. Cache: in decoding t is 1 and l what is in the cache.
        scale: factor of the logits.
        n_prefix: tokens before the patches (vision); 0 in the language model.
        layer: the tower's block or the decoder's layer.
    """

    query: Tensor
    key: Tensor
    scale: float
    n_prefix: int
    layer: int
    _rows: Callable[[int, int], Tensor] = field(repr=False)

    def rows(self, first: int, last: int) -> Tensor:
        """The attention of query rows ``first`` to ``last`` (excluded) over all keys ``[b, h, t, l]``: softmax in float32,
        0 for keys that a row does not see. Ask for few rows: this is computed when it is called."""
        return self._rows(first, last)


FromView = Callable[[Any], Tensor]
FromAttention = Callable[[Attention], Tensor]


class PluginSignal(str):
    """A signal that a plug-in provides; behaves as its name.

    Attributes:
        stage: whose views hold it.
        from_view: makes it from a view that holds the built-in signals of ``needs``, at the first look.
        from_attention: makes it from a layer's attention while that runs: per token ``[b, n]``, or ``[b, n, width]`` (vision:
            of the patches, prefix left out; prefill: of the whole sequence; cache: per head ``[b, g, l]``).
        width: numbers per token; None: one, without an axis of its own.
    """

    stage: Stage
    from_view: FromView | None
    from_attention: FromAttention | None
    needs: frozenset[Signal]
    width: int | None

    @property
    def value(self) -> str:
        return str(self)

    @property
    def name(self) -> str:
        return self.upper()

    @property
    def provider(self) -> Callable[..., Tensor]:
        """The function that makes it."""
        made = self.from_view or self.from_attention
        assert made is not None
        return made


_REGISTERED: dict[str, PluginSignal] = {}


def register_signal(name: str, *, stage: Stage, from_view: FromView | None = None, from_attention: FromAttention | None = None,
                    needs: Iterable[Signal] = (), width: int | None = None) -> PluginSignal:  # fmt: skip
    """Declare a signal and who computes it.

    Args:
        name: unique among all signals.
        stage: ``vision``, ``prefill`` or ``cache``.
        from_view, from_attention: one of the two, see :class:`PluginSignal`.
        needs: built-in signals that ``from_view`` reads; a strategy need not declare them.
        width: numbers per token that ``from_attention`` gives; None: one.

    Raises:
        PluginError: a wrong name, one that is taken, an unknown stage, or not exactly one function.
    """
    who = f"signal '{name}'"
    if not name.isidentifier() or name != name.lower() or name.startswith("_"):
        raise PluginError(f"{who}: a name has lower-case letters, digits and underscores")
    if name in set(Signal):
        raise PluginError(f"{who}: the name is taken by the built-in Signal.{name.upper()}; choose another")
    if stage not in ("vision", "prefill", "cache"):
        raise PluginError(f"{who}: unknown stage {stage!r}: give vision, prefill or cache")
    if (from_view is None) == (from_attention is None):
        raise PluginError(f"{who}: give from_view or from_attention, exactly one of them")
    signal = PluginSignal(name)
    signal.stage, signal.from_view, signal.from_attention = stage, from_view, from_attention
    signal.needs, signal.width = frozenset(needs), width
    taken = _REGISTERED.get(name)
    if taken is not None and _place(taken.provider) != _place(signal.provider):
        raise PluginError(
            f"{who} ({_place(signal.provider)}): the name is taken by {_place(taken.provider)}; choose another"
        )
    if signal.needs and from_attention is not None:
        raise PluginError(f"{who}: from_attention sees the attention alone; leave needs out")
    _REGISTERED[name] = signal
    return signal


def _place(function: Any) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', function)}"


def expanded(needs: frozenset[Any]) -> frozenset[Any]:
    """What is to be there for ``needs``: with the built-in signals that plug-in signals among them are made from."""
    return needs.union(*(each.needs for each in needs if isinstance(each, PluginSignal)))


def attended(needs: frozenset[Any], stage: str) -> list[PluginSignal]:
    """The plug-in signals among ``needs`` that a layer's attention has to be looked at for."""
    return [each for each in needs if isinstance(each, PluginSignal) and each.from_attention and each.stage == stage]


def extra_names(needs: frozenset[Any]) -> frozenset[str]:
    """The names of the plug-in signals among ``needs``."""
    return frozenset(str(each) for each in needs if isinstance(each, PluginSignal))


def made_up(needs: frozenset[Any], stage: str, shape: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
    """Random values of the signals that attention gives, for fabricated views; ``shape`` that of one number per token."""
    return {str(each): torch.rand(*shape, *([] if each.width is None else [each.width]), generator=generator)
            for each in attended(needs, stage)}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SignalReader:
    """What all views share: plug-in signals."""

    _extra: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    _declared: frozenset[str] = field(default=frozenset(), repr=False)

    def read(self, signal: PluginSignal) -> Tensor:
        """The value of a plug-in signal that the strategy's ``needs`` list.

        Raises:
            UndeclaredSignalError: they do not list it, or it is not there at this place.
        """
        if signal in self._extra:
            return self._extra[signal]
        if signal not in self._declared or signal.from_view is None:
            raise UndeclaredSignalError(signal)
        made: dict[str, Tensor] = vars(self).setdefault(
            "_made", {}
        )  # no field: another view of other rows makes its own
        if signal not in made:
            made[signal] = signal.from_view(self)
        return made[signal]
