"""A sweep that is killed again and again: what is left of it, and whether the same command then finishes it.

    python -m benchmarks.kills --kills 50

Each time the sweep is started and gets SIGKILL at a random moment: half of the times at one after its start, half of the
times at one after its first run came to an end. Then every record that is there is read. At the end the same command runs
undisturbed, and the table is compared with that of a sweep that nobody disturbed. Writes kills.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import Log
from benchmarks.stores import table
from tokcomp.cli.main import main as tokcomp
from tokcomp.experiment.sweep import sweep

LONGEST = 4.0
"""Seconds from the start, or from the first run's end, to the kill, at most."""


def swept(overrides: Sequence[str]) -> None:
    """``tokcomp sweep`` in a process of its own."""
    torch.set_num_threads(1)
    os._exit(tokcomp(["sweep", *overrides]))


def starter() -> multiprocessing.context.ForkServerContext:
    """Starts processes that have imported everything already, so that a kill seldom falls into imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "transformers.models.llava.modeling_llava"])
    return context


def disturbed(
    overrides: Sequence[str], folder: Path, kills: int, *, seed: int = 0, longest: float = LONGEST
) -> dict[str, Any]:
    """Kill the sweep ``kills`` times, finish it, and compare it with an undisturbed one.

    Args:
        overrides: the sweep, without a place.
        folder: where both stores are made.
        kills: how often.
        seed: of the random moments.
        longest: seconds before the kill, at most.

    Returns:
        ``kills``: how often the sweep was still running when it was killed; ``records``: valid records after each kill;
        ``damaged``: records that were moved aside; ``runs``: those of the finished sweep; ``same``: whether its table is that
        of the undisturbed one.

    Raises:
        ConfigurationError: a record that cannot be read after a kill.
    """
    dice, context, place = random.Random(seed), starter(), folder / "killed"
    line = [*overrides, f"hydra.sweep.dir={place}"]
    landed, records = 0, []
    for number in range(kills):
        journals = len(list(place.glob("journal/*")))
        process = context.Process(target=swept, args=(line,))
        process.start()
        while number % 2 and process.is_alive() and len(list(place.glob("journal/*"))) == journals:
            time.sleep(0.01)
        process.join(dice.uniform(0.0, longest))
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            landed += 1
        process.join()
        records.append(len(table(place)) if (place / "store.json").is_file() else 0)
    sweep(line)
    sweep([*overrides, f"hydra.sweep.dir={folder / 'quiet'}"])
    finished = table(place)
    return {
        "kills": landed,
        "records": records,
        "damaged": len(list(place.glob("runs/*/*.damaged"))),
        "runs": len(finished),
        "same": finished == table(folder / "quiet"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--longest", type=float, default=8.0, help="seconds before a kill, at most")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    overrides = [
        "vision=none,tome,mustdrop", "prefill=none,fastv,mustdrop", "cache=none,h2o,mustdrop", "seed=range(0,6)",
        "benchmark.samples=2", "benchmark.max_new_tokens=4", "measure.timing=false", "measure.memory=false", "device=cpu",
    ]  # fmt: skip
    command = f"python -m benchmarks.kills --kills {options.kills} --longest {options.longest:g}"
    log = Log(options.out / "kills.json", torch.device("cpu"), command, sweep=overrides)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = disturbed(overrides, Path(folder), options.kills, longest=options.longest)
        log.add(**found, seconds=time.monotonic() - begun)
    return 0 if found["same"] and not found["damaged"] else 1


if __name__ == "__main__":
    sys.exit(main())
