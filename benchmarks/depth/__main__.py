"""Command line, see the package."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch

from benchmarks.depth.answering import run_cell
from benchmarks.depth.cells import Cell, all_cells
from benchmarks.depth.gaze import gaze

SAMPLES = 360


def _claimed(path: Path) -> bool:
    """Whether this process is the first to ask for ``path``."""
    try:
        os.close(os.open(path.with_suffix(".claim"), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _write(path: Path, content: object) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content) + "\n")
    part.replace(path)


def work(out: Path, cells: list[Cell], samples: int, device: str, until: float) -> None:
    """Run the cells that nobody has run or begun."""
    torch.set_num_threads(1)
    for cell in cells:
        path = out / f"{cell.id}.json"
        if time.monotonic() > until:
            return
        if path.exists() or not _claimed(path):
            continue
        record = run_cell(cell, samples, device)
        _write(path, record)
        print(cell.id, record["right"].count("1") / samples, record["seconds"], "s", flush=True)
    path = out / "gaze.json"
    if not path.exists() and _claimed(path):
        _write(path, gaze(device))


def summarise(out: Path, target: Path) -> None:
    """All records as one file, sorted by name."""
    records = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    cells = []
    for record in (record for record in records if "right" in record):
        hits = defaultdict(list)
        for kind, hit in zip(record.pop("asked"), record["right"], strict=True):
            hits[kind].append(hit == "1")
        record.update(right=record["right"].count("1"), by_kind={kind: [sum(h), len(h)] for kind, h in hits.items()})
        cells.append(record)
    gazes = next((record for record in records if "rows" in record), None)
    lines = ",\n".join(json.dumps(cell) for cell in cells)
    target.write_text(f'{{"gaze": {json.dumps(gazes)},\n"cells": [\n{lines}\n]}}\n')


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.depth", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the cells' records")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="questions per cell")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no cell after so many")
    parser.add_argument("--only", default="", help="cells whose id begins so")
    parser.add_argument("--summary", type=Path, help="write all records to this file, run nothing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.summary:
        summarise(options.out, options.summary)
        return 0
    if options.processes == 1:
        cells = [cell for cell in all_cells() if cell.id.startswith(options.only)]
        work(options.out, cells, options.samples, options.device, time.monotonic() + options.seconds)
        return 0
    # Claims of a run that was stopped are void; nobody else may be running in this folder.
    for claim in options.out.glob("*.claim"):
        claim.unlink()
    words = [*sys.argv[1:], "--processes", "1"]
    workers = [subprocess.Popen([sys.executable, "-m", "benchmarks.depth", *words]) for _ in range(options.processes)]
    return max(worker.wait() for worker in workers)


if __name__ == "__main__":
    sys.exit(main())
