"""tokcomp: vision-token compression for vision-language models, any strategies mixed across three stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Budget": "tokcomp.budget",
    "CACHE": "tokcomp.registry",
    "CachePolicy": "tokcomp.stages",
    "CacheView": "tokcomp.types",
    "PREFILL": "tokcomp.registry",
    "Pipeline": "tokcomp.pipeline",
    "PrefillFilter": "tokcomp.stages",
    "PrefillView": "tokcomp.types",
    "Selection": "tokcomp.types",
    "Signal": "tokcomp.types",
    "Site": "tokcomp.types",
    "TokcompError": "tokcomp.errors",
    "VISION": "tokcomp.registry",
    "register_signal": "tokcomp.plugin_signals",
    "VisionReducer": "tokcomp.stages",
    "VisionView": "tokcomp.types",
}

__all__ = [
    "CACHE",
    "PREFILL",
    "VISION",
    "Budget",
    "CachePolicy",
    "CacheView",
    "Pipeline",
    "PrefillFilter",
    "PrefillView",
    "Selection",
    "Signal",
    "Site",
    "TokcompError",
    "VisionReducer",
    "VisionView",
    "__version__",
    "register_signal",
]

if TYPE_CHECKING:
    from tokcomp.budget import Budget
    from tokcomp.errors import TokcompError
    from tokcomp.pipeline import Pipeline
    from tokcomp.plugin_signals import register_signal
    from tokcomp.registry import CACHE, PREFILL, VISION
    from tokcomp.stages import CachePolicy, PrefillFilter, VisionReducer
    from tokcomp.types import CacheView, PrefillView, Selection, Signal, Site, VisionView


def __getattr__(name: str) -> Any:
    # Public names load on first use, so that `import tokcomp` does not pull in torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'tokcomp' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
