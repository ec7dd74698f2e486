"""Finds golden cases by folder, so that a new folder of the same layout is a new test."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

SHIPPED = Path(__file__).parent / "golden"
GOLDEN = Path(os.environ.get("TOKCOMP_GOLDEN") or SHIPPED)


def folders(*prefixes: str) -> list[Path]:
    """Folders of the golden directory whose name starts with one of ``prefixes``, sorted."""
    if not GOLDEN.is_dir():
        return []
    return sorted(path for path in GOLDEN.iterdir() if path.is_dir() and path.name.startswith(prefixes))


@cache
def tensors(folder: Path, name: str = "golden.safetensors") -> dict[str, Tensor]:
    """All tensors of one folder (do not modify them: the result is shared)."""
    return load_file(folder / name)


@cache
def meta(folder: Path, name: str = "golden.json") -> dict[str, Any]:
    """The parameters of one folder's cases."""
    return json.loads((folder / name).read_text())


def group(folder: Path, case: str, name: str = "golden.safetensors") -> dict[str, Tensor]:
    """Tensors ``<case>.<tensor>`` of one case, by tensor name."""
    return {key[len(case) + 1 :]: value for key, value in tensors(folder, name).items() if key.startswith(case + ".")}


def cases(*prefixes: str, having: str = "") -> list[tuple[Path, str]]:
    """Folder and name of every case in the folders with these prefixes whose tensors include ``having``."""
    return [
        (folder, case)
        for folder in folders(*prefixes)
        for case, told in meta(folder)["cases"].items()
        if not having or having in told["tensors"]
    ]


def listed_cases(*prefixes: str) -> list[Any]:
    """Parameters ``(folder, case)`` for every case whose tensors are there, named as the case is."""
    import pytest

    return [
        pytest.param(folder, case, id=case["name"])
        for folder in folders(*prefixes)
        for case in meta(folder)["cases"]
        if group(folder, case["name"])
    ]
