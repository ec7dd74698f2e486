"""What a model family must tell the runner: where its tower, projector and decoder layers are.

An adapter holds references into one model and knows no strategy. Adding a family is one file in this folder that builds an
:class:`Adapter` and registers it with :func:`register_adapter`. Installed packages add families by the entry-point group
``tokcomp.models``; ``model.adapter=my_pkg.adapters:build`` chooses a builder for one run.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from tokcomp.errors import PluginError, UnsupportedError
from tokcomp.models.layout import Call, Layout
from tokcomp.models.parts import Adapter, Decoder, Modality, Tower, TowerBlock
from tokcomp.plugins import import_object, load_group

__all__ = [
    "Adapter",
    "Call",
    "Decoder",
    "Layout",
    "Modality",
    "Tower",
    "TowerBlock",
    "find_adapter",
    "register_adapter",
    "use_adapter",
]


AdapterBuilder = Callable[[nn.Module], Adapter]
_BUILDERS: dict[str, AdapterBuilder] = {}
_CHOSEN: WeakKeyDictionary[nn.Module, AdapterBuilder] = WeakKeyDictionary()


def register_adapter(*class_names: str) -> Callable[[AdapterBuilder], AdapterBuilder]:
    """Decorator: use this builder for models whose class, or one of its bases, has one of these names.

    Raises:
        PluginError: it is no function, or another builder has the name already.
    """

    def add(builder: AdapterBuilder) -> AdapterBuilder:
        _refuse_wrong("an adapter for " + " and ".join(f"'{name}'" for name in class_names), builder)
        if builder.__module__.partition(".")[0] != "tokcomp":
            _load_families()  # the built-in names are there first
        for name in class_names:
            taken = _BUILDERS.get(name, builder)
            if (taken.__module__, taken.__qualname__) != (builder.__module__, builder.__qualname__):
                raise PluginError(
                    f"an adapter for '{name}' ({builder.__module__}.{builder.__qualname__}): the name is taken by "
                    f"{taken.__module__}.{taken.__qualname__}; for one model alone take use_adapter or model.adapter"
                )
        _BUILDERS.update(dict.fromkeys(class_names, builder))
        return builder

    return add


def use_adapter(model: nn.Module, builder: AdapterBuilder | str) -> None:
    """Use this builder, or the one that a dotted path (``my_pkg.adapters:build``) names, for this one model, whatever its class.

    Raises:
        PluginError: there is no such function.
    """
    found = import_object(builder) if isinstance(builder, str) else builder
    _refuse_wrong(f"the adapter {builder if isinstance(builder, str) else found}", found)
    _CHOSEN[model] = found


def _refuse_wrong(where: str, builder: object) -> None:
    if not callable(builder) or isinstance(builder, type):
        raise PluginError(f"{where} is not a function that takes a model and gives a tokcomp.models.adapter.Adapter")


@cache
def _load_families() -> None:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")  # importing registers


@cache
def _load_plugins() -> None:
    """Import every installed adapter once; one that fails is named in a warning, leaves nothing behind, and the others go on."""
    good = dict(_BUILDERS)

    def take(point: EntryPoint, found: Any) -> None:
        if not isinstance(found, ModuleType) and found not in _BUILDERS.values():
            raise PluginError("it names neither a module nor a function that register_adapter has registered")
        good.update(_BUILDERS)

    def undo() -> None:
        for name in _BUILDERS.keys() - good.keys():
            del _BUILDERS[name]

    load_group("tokcomp.models", take, undo)


def find_adapter(model: nn.Module) -> Adapter:
    """The adapter of ``model``: the one that was chosen for it (:func:`use_adapter`), its family's, one of an installed
    package (entry-point group ``tokcomp.models``), or one of parts that are found by their names (with a
    :class:`~tokcomp.errors.DiscoveryWarning`).

    Raises:
        UnsupportedError: no family fits; the message names the class, the known families and the way out.
        PluginError: a plug-in's builder gave something else than an adapter.
    """
    from tokcomp.models import causal, discovery

    _load_families()
    _load_plugins()
    builder = _CHOSEN.get(model)
    if builder is None:
        builder = next((_BUILDERS[base.__name__] for base in type(model).__mro__ if base.__name__ in _BUILDERS), None)
    if builder is not None:
        adapter = builder(model)
        if not isinstance(adapter, Adapter):
            raise PluginError(
                f"{builder.__module__}.{builder.__qualname__} gave {type(adapter).__name__} for {type(model).__name__}: an "
                "adapter's builder returns a tokcomp.models.adapter.Adapter"
            )
        return adapter
    if discovery.looks_multimodal(model):
        return discovery.discover(model)
    if causal.looks_causal(model):
        return causal.build(model)
    raise UnsupportedError(
        f"{type(model).__name__} is not a supported model; known: {', '.join(sorted(_BUILDERS))} and causal language "
        "models with model.layers and rotary_emb. Write an adapter with tokcomp.models.adapter.register_adapter"
    )
