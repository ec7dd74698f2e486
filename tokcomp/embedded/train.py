"""Train the embedded model from scratch: ``python -m tokcomp.embedded.train --out DIR``.

Three stages: "vision" teaches the tower to describe patches, "language" teaches the language
model to answer from ideal descriptions, "joint" lets it read the real ones. The first two need
nothing of each other and may run as two processes on the same directory. An interrupted command
continues from the last checkpoint when given again, to the same weights as if undisturbed.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from tokcomp.embedded.architecture import build_model
from tokcomp.embedded.processor import build_processor
from tokcomp.embedded.training.checkpoint import CheckpointError, load_for_run
from tokcomp.embedded.training.joint import JointStage
from tokcomp.embedded.training.language import LanguageStage
from tokcomp.embedded.training.loop import Schedule, Stage, Training, checkpoint_path, run_settings
from tokcomp.embedded.training.vision import VisionStage

STAGES = ("vision", "language", "joint")

SCHEDULES = {
    "vision": Schedule(steps=5000, batch=16, rate=1e-3, warmup=200, decay=0.03),
    "language": Schedule(steps=800, batch=16, rate=1.5e-3, warmup=100, decay=0.01),
    "joint": Schedule(steps=300, batch=16, rate=8e-4, warmup=50, decay=0.01),
}
"""The budgets that made the shipped weights."""


def scaled(schedule: Schedule, scale: float, seed: int) -> Schedule:
    """The same schedule with its steps, and at most its warm-up, multiplied by ``scale``."""
    steps = max(1, round(schedule.steps * scale))
    return replace(schedule, steps=steps, warmup=max(1, min(schedule.warmup, steps // 5)), seed=seed)


def _finished(directory: Path, name: str, schedule: Schedule) -> dict[str, Tensor]:
    """The weights a finished stage left in ``directory``."""
    path = checkpoint_path(directory, name)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; train with --stage {name} first")
    content = load_for_run(path, run_settings(name, schedule))
    if content["step"] < schedule.steps:
        raise CheckpointError(f"{path} stopped at step {content['step']} of {schedule.steps}; finish --stage {name}")
    weights: dict[str, Tensor] = content["weights"]
    return weights


def build_stage(name: str, directory: Path, schedules: dict[str, Schedule]) -> Stage:
    """A stage over a fresh model; "joint" starts from what the other two left in ``directory``."""
    schedule = schedules[name]
    model = build_model(schedule.seed)
    if name == "vision":
        return VisionStage(model, schedule)
    if name == "language":
        return LanguageStage(model, schedule)
    vision = _finished(directory, "vision", schedules["vision"])
    language = _finished(directory, "language", schedules["language"])
    return JointStage(model, schedule, vision, language)


def export(model: LlavaForConditionalGeneration, directory: Path, record: dict[str, Any]) -> None:
    """Write the model in half precision, its processor and the record of its training."""
    model.to(torch.float16).save_pretrained(directory)
    build_processor().save_pretrained(directory)
    (directory / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def training_record(directory: Path, schedules: dict[str, Schedule], command: str) -> dict[str, Any]:
    """What was trained how, with the last line each stage logged."""
    stages = {}
    for name, schedule in schedules.items():
        lines = (directory / f"{name}.jsonl").read_text().splitlines()
        stages[name] = {"schedule": asdict(schedule), "last": json.loads(lines[-1])}
    return {"command": command, "torch": torch.__version__, "stages": stages}


def train_tiny(options: argparse.Namespace) -> None:
    """Train the first model, all its stages or one."""
    schedules = {name: scaled(SCHEDULES[name], options.scale, options.seed) for name in STAGES}
    for name in STAGES if options.stage == "all" else (options.stage,):
        stage = build_stage(name, options.out, schedules)
        Training(stage, options.out, workers=options.workers).run()
        if isinstance(stage, JointStage):
            options_given = f"--scale {options.scale:g} --seed {options.seed} --out DIR"
            command = f"python -m tokcomp.embedded.train --stage all {options_given}"
            export(stage.model, options.out / "weights", training_record(options.out, schedules, command))


def train_hard(options: argparse.Namespace) -> None:
    """Train the hard scenes' model, both stages or one."""
    from tokcomp.embedded.hard import recipe

    machine = recipe.Machine(torch.device(options.device), getattr(torch, options.dtype), options.compile)
    until = time.monotonic() + (options.deadline or math.inf)
    schedules = {name: scaled(s, options.scale, options.seed) for name, s in recipe.SCHEDULES.items()}
    schedules = {name: replace(s, batch=options.batch or s.batch) for name, s in schedules.items()}
    for name in recipe.STAGES:
        asked = options.stage in ("all", name)
        seconds = options.seconds.get(name) if asked else None
        schedules[name] = recipe.planned(name, options.out, schedules, machine, seconds, options.workers)
        if not asked:
            continue
        stage = recipe.build_stage(name, options.out, schedules, machine)
        # Only the last stage may be cut off; nothing can follow an unfinished one.
        limit = until if name == recipe.STAGES[-1] else math.inf
        training = Training(stage, options.out, workers=options.workers, save_every=options.save_every, until=limit)
        training.run()
        if isinstance(stage, recipe.LanguageStage):
            command = "python -m tokcomp.embedded.train " + shlex.join(_without_out(options.words)) + " --out DIR"
            record = training_record(options.out, schedules, command)
            record["device"] = recipe.device_name(machine.device)
            if training.step < schedules[name].steps:
                record["stopped_at"] = training.step
            logs = [options.out / f"{name}.jsonl" for name in recipe.STAGES]
            recipe.export(stage.model, options.out / "weights", record, logs)


def _without_out(words: list[str]) -> list[str]:
    return [w for i, w in enumerate(words) if w != "--out" and (i == 0 or words[i - 1] != "--out")]


def _seconds(text: str) -> dict[str, float]:
    """``vision=120,language=300`` as a mapping."""
    return {name: float(value) for name, _, value in (part.partition("=") for part in text.split(","))}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tokcomp.embedded.train", description=__doc__)
    parser.add_argument("--model", choices=("tiny", "tiny-hard"), default="tiny", help="which embedded model")
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--out", type=Path, required=True, help="directory of checkpoints, logs and weights/")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the steps of every stage")
    parser.add_argument("--threads", type=int, default=1, help="threads of the arithmetic")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw scenes ahead")
    parser.add_argument("--seed", type=int, default=0)
    hard = parser.add_argument_group("tiny-hard alone")
    hard.add_argument("--device", default="cpu", help="cpu or cuda")
    hard.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of matrix products")
    hard.add_argument("--compile", action="store_true", help="compile the layers")
    hard.add_argument("--batch", type=int, default=0, help="scenes per step, instead of the recipe's")
    hard.add_argument("--save-every", type=int, default=0, help="steps between checkpoints; 0: with every log line")
    hard.add_argument("--seconds", type=_seconds, default={}, help="fit the steps to a time: vision=S,language=S")
    hard.add_argument(
        "--deadline",
        type=float,
        default=0.0,
        help="cut the last stage off with a checkpoint at so many seconds and write the weights as they are",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    options.words = sys.argv[1:] if arguments is None else arguments
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    try:
        (train_tiny if options.model == "tiny" else train_hard)(options)
    except CheckpointError as error:
        parser.exit(2, f"{error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
