"""Decoders whose layers lie on several devices: at each border the tables of the pass move along with its hidden states, so that
everything about a layer is on the layer's own device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokcomp.runner.arguments import cache_in
from tokcomp.runner.hooks import Hooks
from tokcomp.runner.passes import Pass
from tokcomp.runner.request import Entries, Request
from tokcomp.runner.turns import LaterTurn

__all__ = ["Borders", "to_device"]


class Borders:
    """Brings passes over.

    Args:
        layers: of the decoder. ``devices``: on which each of them computes.
        current: the pass that is under way, or None.
    """

    def __init__(self, layers: Sequence[nn.Module], devices: Sequence[torch.device],
                 current: Callable[[], Pass | None]) -> None:  # fmt: skip
        self.layers, self.devices, self.current = layers, devices, current

    def install(self, hooks: Hooks) -> None:
        """Ahead of every other hook of the layers."""
        for layer, device in zip(self.layers, self.devices, strict=True):
            hooks.before(layer, self._bring(device))

    def _bring(self, device: torch.device) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            run = self.current()
            if run is None:
                return None
            if run.positions.device != device:
                _move(run, device)
            cache = cache_in(kwargs)
            own = {name: value if value is cache else to_device(value, device) for name, value in kwargs.items()}
            return to_device(args, device), own

        return hook


def _move(run: Pass, device: torch.device) -> None:
    """Move what a pass knows of its tokens to ``device``; what its layers share is found anew there."""
    run.request = _on(run.request, device)
    for name in ("positions", "sequence", "follow", "blocks", "rows", "keys", "noted"):
        setattr(run, name, to_device(getattr(run, name), device))
    run.memo, run.shares = {}, {}
    if run.turn is not None:
        run.turn = LaterTurn(run.turn.layers, to_device(run.turn.follow, device))


def to_device(value: Any, device: torch.device) -> Any:
    """``value`` with all tensors in it (in tuples, dicts and dataclasses, too) on ``device``; the same object where they are
    there already."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        moved = tuple(to_device(each, device) for each in value)
        return value if all(new is old for new, old in zip(moved, value, strict=True)) else moved
    if isinstance(value, dict):
        found = {name: to_device(each, device) for name, each in value.items()}
        return value if all(found[name] is each for name, each in value.items()) else found
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        changed = {name: new for name, old in fields.items() if (new := to_device(old, device)) is not old}
        return dataclasses.replace(value, **changed) if changed else value
    return value


def _on(request: Request, device: torch.device) -> Request:
    """The request as a layer on ``device`` sees it."""
    home = request.home if isinstance(request, _Abroad) else request
    return home if home.prompt.valid.device == device else _Abroad(home, device)


class _Abroad(Request):
    """A request whose tables are on another device than the embeddings; what changes is kept where it belongs."""

    home: Request
    device: torch.device

    def __init__(self, home: Request, device: torch.device) -> None:
        fields = {field.name: getattr(home, field.name) for field in dataclasses.fields(home)}
        fields |= {"prompt": to_device(home.prompt, device), "past": to_device(home.past, device)}
        vars(self).update(fields, home=home, device=device)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.home, name, to_device(value, self.home.prompt.valid.device))

    @property
    def next_position(self) -> Tensor:  # type: ignore[override]
        return self.home.next_position.to(self.device)

    @property
    def unnumbered(self) -> int | Tensor:  # type: ignore[override]
        found: int | Tensor = to_device(self.home.unnumbered, self.device)
        return found

    @property
    def reads(self) -> list[list[tuple[int, Tensor | None]]] | None:  # type: ignore[override]
        return self.home.reads

    @property
    def entries(self) -> list[Entries]:  # type: ignore[override]
        return self.home.entries
