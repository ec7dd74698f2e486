"""Time that a prefill spends on selecting: strategies' decisions and the scores that only they look at."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch

from tokcomp import Pipeline
from tokcomp.measure.timing import clock_for

__all__ = ["SelectionClock", "selection_clock"]

_SCORES = ("attention_rows", "column_sums")
_METHODS = {"vision": ("reduce",), "prefill": ("filter",), "cache": ("after_prefill", "after_step")}


class SelectionClock:
    """Sums the time between entering and leaving the watched functions; nested ones count once."""

    def __init__(self, device: torch.device) -> None:
        self._clock = clock_for(device)
        self._spans: list[tuple[Any, Any]] = []
        self._depth = 0

    @property
    def seconds(self) -> float:
        return sum(self._clock.seconds(start, end) for start, end in self._spans)

    @property
    def calls(self) -> int:
        return len(self._spans)

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            start = self._clock.stamp()
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._spans.append((start, self._clock.stamp()))

        return watched


@contextmanager
def selection_clock(pipeline: Pipeline, device: torch.device) -> Iterator[SelectionClock]:
    """While it is open, every decision of ``pipeline`` and every score computed for it is timed."""
    clock = SelectionClock(device)
    with ExitStack() as stack:
        for stage, methods in _METHODS.items():
            strategy = getattr(pipeline, stage)
            for name in methods if strategy is not None else ():
                stack.enter_context(patch.object(type(strategy), name, clock.watch(getattr(type(strategy), name))))
        for module_name, module in list(sys.modules.items()):
            if module_name.startswith("tokcomp.runner"):
                for name in _SCORES:
                    if hasattr(module, name):
                        stack.enter_context(patch.object(module, name, clock.watch(getattr(module, name))))
        yield clock
