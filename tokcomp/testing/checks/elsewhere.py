"""The rule about devices: an imagined one everywhere, and a CUDA device where there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from tokcomp.testing.benches import Bench, Crash, Decided
from tokcomp.testing.checks.decisions import sound
from tokcomp.testing.elsewhere import ELSEWHERE, Elsewhere, UnimaginableError, back, send
from tokcomp.testing.instances import fresh
from tokcomp.testing.report import Breach, Unchecked
from tokcomp.testing.search import Search
from tokcomp.testing.situations import Situation, Space

__all__ = ["device"]

_DO = "create tensors with device=view.device (or like one of the view: torch.zeros_like, new_full), and move nothing to the CPU"


def device(strategy: Any, bench: Bench, search: Search) -> None:
    """The same decisions on another device."""

    def test(case: Situation) -> None:
        for view in bench.views(strategy, case):
            here = sound(strategy, bench, view)
            with Elsewhere():
                there = _decisions(bench, fresh(strategy), bench.moved(view, send))
                for decided in there:
                    _on_the_device(decided)
            _same(bench, here, [_home(decided) for decided in there], view, "another device")
            if torch.cuda.is_available():
                far = _decisions(bench, fresh(strategy), bench.moved(view, lambda value: value.cuda()))
                _same(bench, here, [_home(decided) for decided in far], view, "CUDA", size=_size)

    search(Space(bench.stage, tokens=(1, 16), batch=(1, 3)), test)


def _decisions(bench: Bench, strategy: Any, view: Any) -> list[Decided]:
    try:
        return bench.decide(strategy, view)
    except Crash as crash:
        if isinstance(crash.error, UnimaginableError):
            raise Unchecked(f"only a real device could tell: {crash.error}") from crash
        raise Breach(f"on another device {crash}", do=_DO) from crash


def _on_the_device(decided: Decided) -> None:
    found = decided.selection
    for name in ("keep", "assign", "weight", "mix", "protect"):
        value = getattr(found, name, None)
        if isinstance(value, Tensor) and value.device.type != ELSEWHERE.type:
            raise Breach(f"{decided.called} returns {name} on the CPU, though its view is on another device", do=_DO)


def _home(decided: Decided) -> Decided:
    """The decision on the CPU."""
    found = decided.selection
    if found is None:
        return decided
    tensors = {field.name: back(value).cpu() for field in fields(found)
               if field.init and isinstance(value := getattr(found, field.name), Tensor)}  # fmt: skip
    return replace(decided, selection=replace(found, **tensors))


def _same(bench: Bench, here: list[Decided], there: list[Decided], view: Any, where: str,
          size: Callable[[Any], Any] = lambda outcome: outcome) -> None:  # fmt: skip
    for one, two in zip(here, there, strict=True):
        for row in range(view.batch_size):
            ours, theirs = (bench.outcome(each.selection, view, row) for each in (one, two))
            if size(ours) != size(theirs):
                raise Breach(
                    f"{one.called} decides otherwise on {where} than on the CPU",
                    do="let the lower index win among equals (a stable sort): topk leaves ties to the device",
                )


def _size(outcome: Any) -> Any:
    """How much is kept: a real device rounds scores otherwise, which may exchange two that are all but equal."""
    kept = outcome[0] if isinstance(outcome, tuple) else outcome
    return [len(each) if isinstance(each, list) else 1 for each in kept]
