"""How the hard scenes' model is trained: stages, budgets, and how they are fitted to a time."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from tokcomp.embedded.hard import vocabulary as v
from tokcomp.embedded.hard.architecture import build_model
from tokcomp.embedded.hard.forward import Forward
from tokcomp.embedded.hard.language_stage import LanguageStage
from tokcomp.embedded.hard.scenes import warm_up
from tokcomp.embedded.hard.vision_stage import VisionStage
from tokcomp.embedded.processor import build_processor
from tokcomp.embedded.training.checkpoint import CheckpointError, load_for_run
from tokcomp.embedded.training.loop import Schedule, Stage, Training, checkpoint_path, run_settings, step_batches

STAGES = ("vision", "language")

SCHEDULES = {
    "vision": Schedule(steps=4000, batch=512, rate=1.2e-3, warmup=300, decay=0.03),
    "language": Schedule(steps=5000, batch=256, rate=1.5e-3, warmup=200, decay=0.01),
}
"""The budgets that made the shipped weights, on one accelerator."""

TRIAL_STEPS, TIMED_STEPS = 60, 40


@dataclass(frozen=True)
class Machine:
    """Where and in what training runs.

    Attributes:
        device: of the model; scenes are painted there, too.
        dtype: of matrix products.
        compiled: whether layers go through ``torch.compile``.
    """

    device: torch.device
    dtype: torch.dtype
    compiled: bool = False


def build_stage(name: str, directory: Path, schedules: Mapping[str, Schedule], machine: Machine) -> Stage:
    """A stage over a fresh model; "language" starts from what "vision" left in ``directory``."""
    warm_up()
    schedule = schedules[name]
    model = build_model(schedule.seed)
    forward = Forward(model, machine.dtype, compiled=machine.compiled)
    stage: Stage
    if name == "vision":
        stage = VisionStage(model, schedule, forward)
    else:
        stage = LanguageStage(model, schedule, forward, finished_vision(directory, schedules["vision"]))
    stage.trained().to(machine.device)
    model.to(machine.device)
    return stage


def finished_vision(directory: Path, schedule: Schedule) -> dict[str, Tensor]:
    """The weights that the vision stage left in ``directory``."""
    path = checkpoint_path(directory, "vision")
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; train with --stage vision first")
    content = load_for_run(path, run_settings("vision", schedule))
    if content["step"] < schedule.steps:
        raise CheckpointError(f"{path} stopped at step {content['step']} of {schedule.steps}; finish --stage vision")
    weights: dict[str, Tensor] = content["weights"]
    return weights


def planned(name: str, directory: Path, schedules: dict[str, Schedule], machine: Machine, seconds: float | None,
            workers: int) -> Schedule:  # fmt: skip
    """The schedule of a stage in ``directory``: fitted to ``seconds`` once, then the same for ever.

    A few steps are made and thrown away to see how long one takes; the number of steps that fit is written down next to the
    checkpoints, so that an interrupted run goes on by the schedule that it began with.
    """
    path = directory / f"{name}.plan.json"
    if not path.exists() and seconds is not None:
        trial = Training(build_stage(name, directory, schedules, machine), directory)
        started = 0.0
        for step, batch in enumerate(step_batches(trial.stage, 0, TRIAL_STEPS, workers)):
            if step == TRIAL_STEPS - TIMED_STEPS:
                _wait(machine.device)
                started = time.monotonic()
            trial.descend(batch)
        _wait(machine.device)
        per_step = (time.monotonic() - started) / TIMED_STEPS
        steps = max(TRIAL_STEPS, int(seconds / per_step))
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"steps": steps, "seconds": seconds, "seconds_per_step": round(per_step, 5)}) + "\n")
    if path.exists():
        steps = int(json.loads(path.read_text())["steps"])
        return replace(schedules[name], steps=steps)
    return schedules[name]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def export(model: LlavaForConditionalGeneration, directory: Path, record: dict[str, Any], logs: list[Path]) -> None:
    """Write the model in half precision, its processor, the record of its training and the logs' examinations."""
    model.to("cpu", torch.float16).save_pretrained(directory)
    build_processor(v.WORD_IDS).save_pretrained(directory)
    (directory / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    lines = [line for log in logs for line in log.read_text().splitlines(keepends=True) if '"held_out"' in line]
    (directory / "training.jsonl").write_text("".join(lines))
