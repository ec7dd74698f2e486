"""The support matrix: what was tested on which family, read from the file that the tests write."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["FILE", "matrix", "overview"]

FILE = Path(__file__).with_name("support.json")


@cache
def matrix() -> dict[str, Any]:
    """``families`` by name; ``cells`` by ``stage/strategy``, family and way of use: ``yes``, ``refused: reason`` or
    ``failed: what``; ``ways`` in order."""
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def overview() -> list[tuple[str, str, dict[str, tuple[int, int]]]]:
    """Per family its name, its class and, by way of use, of how many strategies it works with how many."""
    found = matrix()
    rows = []
    for name, about in found["families"].items():
        counts = {}
        for way in found["ways"]:
            cells = [row[name][way] for row in found["cells"].values() if way in row.get(name, {})]
            counts[way] = (sum(cell == "yes" for cell in cells), len(cells))
        rows.append((name, about["class"], counts))
    return rows
