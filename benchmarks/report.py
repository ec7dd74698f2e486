"""What `tokcomp report` takes for a store of many runs: time, processor time and memory of the command as a whole.

    python -m benchmarks.report --runs 10000

The store is made of the committed records of 27 combinations: each one again and again under another seed, with some of its
answers made wrong. Writes report.json, one row per size.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.records import Log

TEMPLATES = Path("docs/results/stages")


def varied(template: dict[str, Any], number: int) -> dict[str, Any]:
    """One record as another run might have left it: another seed, and a share of its answers wrong."""
    dice = random.Random(number)
    wrong = dice.uniform(0, 0.5)
    samples = [
        {**sample, "compressed": "?", "compressed_score": 0.0} if dice.random() < wrong else sample
        for sample in template["samples"]
    ]
    kinds: dict[str, list[float]] = {}
    for sample in samples:
        kinds.setdefault(sample["kind"], []).append(sample["compressed_score"])
    by_kind = {kind: fmean(scores) for kind, scores in kinds.items()}
    compressed = template["compressed"]
    accuracy = {**compressed["accuracy"], "overall": fmean(by_kind.values()), "by_kind": by_kind}
    return {
        **template,
        "config": {**template["config"], "seed": number},
        "overrides": [*template["overrides"], f"seed={number}"],
        "compressed": {**compressed, "accuracy": accuracy},
        "samples": samples,
    }


def records(runs: int, templates: Path = TEMPLATES) -> Iterator[dict[str, Any]]:
    """``runs`` records, every combination equally often."""
    originals = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(templates.glob("runs/*/result.json"))]
    for number in range(runs):
        yield varied(originals[number % len(originals)], number // len(originals))


def make_store(root: Path, runs: int) -> float:
    """Write the store; gives its megabytes."""
    size = 0
    (root / "store.json").write_bytes((TEMPLATES / "store.json").read_bytes())
    for number, record in enumerate(records(runs)):
        path = root / "runs" / f"{number:016x}" / "result.json"
        path.parent.mkdir(parents=True)
        size += path.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return size / 1e6


def measured(root: Path) -> dict[str, float]:
    """Run the command in a process of its own."""
    begun = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "tokcomp", "report", str(root)], stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"tokcomp report ended with status {process.returncode}")
    return {
        "seconds": time.monotonic() - begun,
        "processor_seconds": used.ru_utime + used.ru_stime,
        "peak_megabytes": used.ru_maxrss * 1024 / 1e6,
        "page_megabytes": (root / "report" / "page.html").stat().st_size / 1e6,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[10_000], help="sizes of the stores")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    command = f"python -m benchmarks.report --runs {' '.join(map(str, options.runs))}"
    log = Log(options.out / "report.json", torch.device("cpu"), command)
    for runs in options.runs:
        with tempfile.TemporaryDirectory() as folder:
            stored = make_store(Path(folder), runs)
            os.sync()  # the report's own files would wait for the store's to be on the disk
            log.add(kind="report", runs=runs, store_megabytes=stored, **measured(Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
