"""What a strategy may look at, where it may act, and whether selections are checked as they are applied."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal

__all__ = ["Signal", "Site", "UndeclaredSignalError", "debug_checks", "debugging", "declared"]


class Signal(StrEnum):
    """Something that a strategy may look at beyond the tokens themselves.

    A strategy lists the signals that it reads in ``needs``; the runner computes a signal only where one is listed, and
    reading one that is not listed raises :class:`UndeclaredSignalError`.
    """

    KEYS = "keys"
    CLS_ATTENTION = "cls_attention"
    UNSPLIT_ATTENTION = "unsplit_attention"
    UNSPLIT_KEYS = "unsplit_keys"
    CLS_TOKEN = "cls_token"
    TEXT_RELEVANCE = "text_relevance"
    QUERY_ATTENTION = "query_attention"
    RECEIVED_ATTENTION = "received_attention"
    ATTENTION_ROWS = "attention_rows"
    QUERIES = "queries"
    SURVEY = "survey"
    FINAL_TOKENS = "final_tokens"
    TEXT = "text"
    FINAL_NORM = "final_norm"
    DIGEST = "digest"


class UndeclaredSignalError(AttributeError):
    """A strategy read a signal that its ``needs`` do not list."""

    def __init__(self, signal: Any) -> None:
        known = f"Signal.{signal.name}" if isinstance(signal, Signal) else f"the plug-in's signal '{signal}'"
        super().__init__(
            f"the signal '{signal.value}' was read but is not there: the strategy did not declare it; add {known} to its `needs`"
        )


def declared(value: Any, signal: Signal) -> Any:
    """A view's value, if the strategy declared its signal.

    Raises:
        UndeclaredSignalError: the value is not there.
    """
    if value is None:
        raise UndeclaredSignalError(signal)
    return value


_debug = os.environ.get("TOKCOMP_DEBUG", "") not in ("", "0")


def debugging() -> bool:
    """Whether selections are checked as the runner applies them (costs device synchronisations)."""
    return _debug


@contextmanager
def debug_checks(enabled: bool = True) -> Iterator[None]:
    """Switch the checks of every applied selection on (or off) inside a ``with`` block."""
    global _debug
    before, _debug = _debug, enabled
    try:
        yield
    finally:
        _debug = before


@dataclass(frozen=True)
class Site:
    """A place in the vision stage where a reducer may act.

    ``mid`` lies between attention and MLP of tower block ``layer``, ``block`` after that block, ``features`` on the
    feature layer that the model selects (before the projector), ``projected`` after the projector. A reducer that acts
    several times at one place numbers its ``turn`` s.
    """

    kind: Literal["mid", "block", "features", "projected"]
    layer: int | None = None
    turn: int = 0

    @property
    def place(self) -> Site:
        """The site whatever the turn."""
        return replace(self, turn=0)

    @classmethod
    def mid(cls, layer: int) -> Site:
        return cls("mid", layer)

    @classmethod
    def block(cls, layer: int) -> Site:
        return cls("block", layer)

    @classmethod
    def features(cls) -> Site:
        return cls("features")

    @classmethod
    def projected(cls) -> Site:
        return cls("projected")

    def __str__(self) -> str:
        return self.kind if self.layer is None else f"{self.kind}({self.layer})"
