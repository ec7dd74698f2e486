"""What one prefill and one decoding step do: operations, kernels, and where their time goes.

    python -m benchmarks.profiled [--batch 4] [--large] [--only tome h2o] [--tiny] [--out FOLDER]

Counts of operations do not depend on how busy the machine is; at batch 1 on a GPU they are what a prefill costs. Writes
profile.json and prints the operations (on a GPU: the kernels) that take longest.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.operations import counted
from benchmarks.pipelines import named_pipelines
from benchmarks.records import Log
from benchmarks.rounds import in_rounds
from benchmarks.shapes import CPU_SMALL, LLAVA_7B, LLAVA_NEXT_7B, TINY, build, prompt
from benchmarks.sides import Prefill, Step
from benchmarks.waits import waits

TEXT, TOP = 64, 14


def measured(side: Prefill, device: torch.device) -> dict[str, Any]:
    """Time, operations and, on a GPU, kernels of one call; prints where the time goes."""
    call = side.__call__
    call()
    samples = in_rounds({"call": call}, device, repeats=5, warmup=1)["call"]
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as found:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
    row = {**samples.record(), "operations": counted(side.forward)}
    events = found.key_averages()
    if device.type == "cuda":
        kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
        row |= {"kernels": sum(event.count for event in kernels),
                "busy_ms": sum(event.self_device_time_total for event in kernels) / 1e3}  # fmt: skip
        slowest = sorted(kernels, key=lambda event: -event.self_device_time_total)[:TOP]
        lines = [(event.self_device_time_total / 1e3, event.count, event.key) for event in slowest]
    else:
        slowest = sorted(events, key=lambda event: -event.self_cpu_time_total)[:TOP]
        lines = [(event.self_cpu_time_total / 1e3, event.count, event.key) for event in slowest]
    for ms, count, key in lines:
        print(f"  {ms:9.3f} ms {count:6d} x {key[:110]}")
    row["slowest"] = [[key[:160], count, ms] for ms, count, key in lines]
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--large", action="store_true", help="2,880 image tokens instead of 576 (GPU)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script itself")
    parser.add_argument("--steps", action="store_true", help="profile a decoding step as well")
    parser.add_argument("--only", nargs="+", default=["mustdrop (", "tome", "h2o", "fastv (K=2, half)"],
                        help="the pipelines whose names begin like this")  # fmt: skip
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("outputs/profile"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    shape = CPU_SMALL if device.type == "cpu" else LLAVA_NEXT_7B if options.large else LLAVA_7B
    shape = TINY if options.tiny else shape
    model, inputs = build(shape, device, dtype), prompt(shape, options.batch, TEXT, device, dtype)
    log = Log(
        options.out / "profile.json", device, "python -m benchmarks.profiled", shape=shape.name, batch=options.batch
    )
    pipelines = named_pipelines(model, inputs["pixel_values"])
    sides = {"dense": None} | {name: one for name, one in pipelines.items() if name.startswith(tuple(options.only))}
    for name, pipeline in sides.items():
        side = Prefill(model, inputs, pipeline)
        with side.prepared():
            print(f"== {name}: prefill", flush=True)
            log.add(kind="prefill", side=name, **measured(side, device))
            if device.type == "cuda":
                log.add(kind="waits", side=name, places=waits(side))
            if options.steps:
                print(f"== {name}: step", flush=True)
                log.add(kind="step", side=name, **measured(Step(model, side()), device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
