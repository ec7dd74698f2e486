"""One sweep by every launcher that is installed: the 27 combinations of three stages give the same table each time.

    python -m benchmarks.launchers --questions 5

Seconds include what starts the launcher's processes and loads the model in each of them. Writes launchers.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.overhead import AXES, QUIET
from benchmarks.records import Log
from benchmarks.stores import table
from tokcomp.experiment.sweep import sweep

LAUNCHERS = {
    "basic": ("hydra", []),
    "joblib": ("hydra_plugins.hydra_joblib_launcher", ["hydra.launcher.n_jobs=2"]),
    "submitit_local": ("submitit", ["hydra.launcher.timeout_min=10"]),
    "ray": (
        "hydra_plugins.hydra_ray_launcher",
        ["+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.init.include_dashboard=false"],
    ),
}  # fmt: skip
"""The package that a launcher comes with, and its settings."""


def installed(launcher: str) -> bool:
    """Whether the launcher's package can be imported."""
    package, *inner = LAUNCHERS[launcher][0].split(".")
    return importlib.util.find_spec(package) is not None and (
        not inner or importlib.util.find_spec(".".join([package, *inner])) is not None
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=5, help="questions per combination")
    parser.add_argument("--launchers", nargs="+", choices=LAUNCHERS, default=list(LAUNCHERS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    given = [*AXES, *QUIET, f"benchmark.samples={options.questions}"]
    log = Log(options.out / "launchers.json", torch.device("cpu"), " ".join(["python -m benchmarks.launchers",
              "--questions", str(options.questions)]), sweep=given)  # fmt: skip
    differ = 0
    with tempfile.TemporaryDirectory() as folder:
        first = None
        for launcher in options.launchers:
            if not installed(launcher):
                log.content["left_out"].append(launcher)
                log.write()
                continue
            begun = time.monotonic()
            place = Path(folder) / launcher
            outcome = sweep([*given, f"hydra.sweep.dir={place}", f"hydra/launcher={launcher}", *LAUNCHERS[launcher][1]])
            shown = table(place)
            first = shown if first is None else first
            differ += shown != first or outcome.broken is not None
            log.add(launcher=launcher, runs=len(outcome.done), failed=len(outcome.failed), broken=outcome.broken,
                    same_table=shown == first, seconds=time.monotonic() - begun)  # fmt: skip
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
