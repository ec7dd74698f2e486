"""A small LLaVA trained from scratch and shipped with the package, and its benchmark data.

Names are imported on first use, so importing this package stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tokcomp.embedded.paths import WEIGHTS

if TYPE_CHECKING:
    from tokcomp.embedded.dataset import SceneQuestion, prompt, question_set
    from tokcomp.embedded.load import load_model, load_processor
    from tokcomp.embedded.scenes import Scene

_HOMES = {
    "Scene": "scenes",
    "SceneQuestion": "dataset",
    "load_model": "load",
    "load_processor": "load",
    "prompt": "dataset",
    "question_set": "dataset",
}

__all__ = ["WEIGHTS", "Scene", "SceneQuestion", "load_model", "load_processor", "prompt", "question_set"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
