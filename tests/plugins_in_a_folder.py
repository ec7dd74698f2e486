"""Packages as an installer leaves them, in a folder that joins the module search for one test."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tokcomp import plugins, registry
from tokcomp.benchmarks import base
from tokcomp.models import adapter

__all__ = ["Install", "installing", "strategy"]

Install = Callable[..., None]


def strategy(
    name: str, cls: str = "Mine", base: str = "VisionReducer", *, decorator: bool = True, body: str = ""
) -> str:
    """The source of a reducer that keeps every n-th token."""
    registered = f'@VISION.register("{name}")\n' if decorator else ""
    return f'''import torch
from tokcomp import VISION, PREFILL, CACHE, Selection, {base}

{registered}class {cls}({base}):
    """Keeps every n-th token."""
    step: int = 2
    {body}
    def reduce(self, view):
        return Selection(keep=torch.arange(0, view.n_tokens, self.step).expand(view.batch_size, -1))
'''


@contextmanager
def installing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Gives ``install(distribution, {"module.py": source}, {group: {name: value}}, version)``; registries are as they were
    afterwards, and forget what they have looked up when something is installed."""
    monkeypatch.syspath_prepend(str(folder))
    known = set(sys.modules)
    _ = len(registry.VISION), adapter._load_families(), base.plugin_names(), adapter._load_plugins()
    places: list[tuple[Any, str]] = [(each, "_classes") for each in registry.REGISTRIES.values()]
    places += [(base, "_registered"), (adapter, "_BUILDERS")]
    for place, attribute in places:
        monkeypatch.setattr(place, attribute, dict(getattr(place, attribute)))

    def install(
        distribution: str, files: dict[str, str], entries: dict[str, dict[str, str]], version: str = "1.0"
    ) -> None:
        for name, source in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(source)
        info = folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text("".join(
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in named.items()) for group, named in entries.items()
        ))  # fmt: skip
        importlib.invalidate_caches()
        monkeypatch.setattr(registry, "_plugins_loaded", False)
        for each in registry.REGISTRIES.values():
            monkeypatch.setattr(each, "_loaded", False)
        for cached in (plugins.points, plugins._owned, base._load_plugins, adapter._load_plugins):
            cached.cache_clear()

    yield install
    for name in set(sys.modules) - known:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    for cached in (plugins.points, plugins._owned, base._load_plugins, adapter._load_plugins):
        cached.cache_clear()
