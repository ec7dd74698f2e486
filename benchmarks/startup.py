"""How long it takes until something happens: importing, the command line's help, its list, completion.

    python -m benchmarks.startup --repeats 9

Every measure is a fresh Python process, one after the other in turns; medians count. What tokcomp adds to torch and transformers
is measured as a process that imports all three, less one that imports those two in the same turn. ``cpu`` is user and system
time, which other processes disturb less than the clock on the wall.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from tokcomp.experiment.environment import describe

OUT = Path(__file__).parent / "results" / "startup.json"
BOTH = "import torch, transformers"
CODE = {
    "nothing": "pass",
    "torch": "import torch",
    "torch and transformers": BOTH,
    "tokcomp alone": "import tokcomp",
    "torch, transformers and tokcomp": f"{BOTH}; import tokcomp",
    "torch, transformers and all public names of tokcomp": (
        f"{BOTH}; import tokcomp; [getattr(tokcomp, name) for name in tokcomp.__all__]"
    ),
}
"""Imports, by what is told of them."""
LINES = {
    "tokcomp --help": ["--help"],
    "tokcomp list": ["list"],
    "tokcomp show vision/mustdrop": ["show", "vision/mustdrop"],
    "completion of vision=": ["completion", "bash", "--line", "tokcomp run vision="],
    "completion of vision.": ["completion", "bash", "--line", "tokcomp run vision=mustdrop vision."],
}
LIMITS = {"what tokcomp adds to torch and transformers": 0.3, "what all its public names add": 0.3, "tokcomp --help": 0.5,
          "tokcomp list": 1.5}  # fmt: skip
"""Seconds on the wall that each may take."""


def measured(arguments: list[str], folder: str) -> tuple[float, float]:
    """Seconds on the wall and of the processor that one process takes."""
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "XDG_CACHE_HOME": folder}
    before, started = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
    ended, after = time.perf_counter(), os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return ended - started, used


def summary(turns: list[dict[str, tuple[float, float]]]) -> dict[str, dict[str, float]]:
    """Medians over the turns, and medians of the differences within them."""

    def told(values: list[tuple[float, float]]) -> dict[str, float]:
        return {"wall": round(median(wall for wall, _ in values), 4), "cpu": round(median(cpu for _, cpu in values), 4)}

    figures = {name: told([turn[name] for turn in turns]) for name in turns[0]}
    added = {"what tokcomp adds to torch and transformers": "torch, transformers and tokcomp",
             "what all its public names add": "torch, transformers and all public names of tokcomp"}  # fmt: skip
    for name, whole in added.items():
        pairs = [(turn[whole], turn["torch and transformers"]) for turn in turns]
        figures[name] = told([(one[0] - two[0], one[1] - two[1]) for one, two in pairs])
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = {**{name: ["-c", code] for name, code in CODE.items()},
                **{name: ["-m", "tokcomp", *words] for name, words in LINES.items()}}  # fmt: skip
        for arguments in runs.values():  # once for the file system and the byte code
            measured(arguments, folder)
        turns = [
            {name: measured(arguments, folder) for name, arguments in runs.items()} for _ in range(options.repeats)
        ]
    figures = summary(turns)
    record: dict[str, Any] = {
        "environment": describe("cpu"),
        "repeats": options.repeats,
        "seconds": figures,
        "limits": LIMITS,
    }
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for name, value in figures.items():
        limit = f"   (at most {LIMITS[name]})" if name in LIMITS else ""
        print(f"{name:<55} {value['wall']:7.3f} s wall {value['cpu']:7.3f} s cpu{limit}")
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
