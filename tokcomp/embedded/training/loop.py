"""The loop all stages share: schedule, optimizer, log, checkpoint and exact resumption.

Everything random in step ``i`` is drawn from ``(seed, stage, i)``, so a checkpoint needs no
generator states: weights, optimizer and step number restore a run bit for bit.
"""

from __future__ import annotations

import json
import math
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from tokcomp.embedded.training.checkpoint import load_for_run, save_checkpoint


@dataclass(frozen=True)
class Schedule:
    """How long and how fast one stage learns.

    Attributes:
        steps: optimizer steps; with ``batch`` scenes each.
        rate: peak learning rate, reached after ``warmup`` steps, then a cosine down to 3 %.
        decay: weight decay of matrices.
        seed: everything random follows from it.
    """

    steps: int
    batch: int
    rate: float
    warmup: int
    decay: float
    seed: int = 0

    def factor(self, step: int) -> float:
        """Share of the peak rate at ``step``."""
        progress = min(1.0, step / self.steps)
        cosine = 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * progress))
        return min(1.0, (step + 1) / self.warmup) * cosine


class Stage(Protocol):
    """What a stage of training brings to the loop."""

    name: str
    schedule: Schedule

    def trained(self) -> nn.Module:
        """The module whose parameters are saved; those that require gradients learn."""

    def batch(self, step: int) -> Any:
        """The data of ``step``: a pure function of ``(seed, stage, step)``; may run elsewhere."""

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, float]]:
        """Loss to descend and figures to log."""

    def held_out(self) -> dict[str, float]:
        """Figures on scenes of the test split; they steer nothing."""


def step_generator(seed: int, stage: str, step: int) -> np.random.Generator:
    """The generator of one step."""
    return np.random.default_rng([seed, zlib.crc32(stage.encode()), step])


class _Steps(Dataset[Any]):
    """The batches of a stage as a data set, so that a worker can draw them ahead."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def __len__(self) -> int:
        return self.stage.schedule.steps

    def __getitem__(self, step: int) -> Any:
        return self.stage.batch(step)


def _batches(stage: Stage, first: int, last: int, workers: int) -> Iterator[Any]:
    loader = DataLoader(_Steps(stage), batch_size=None, sampler=range(first, last), num_workers=workers)
    return iter(loader)


def _optimizer(stage: Stage) -> torch.optim.AdamW:
    learning = [p for p in stage.trained().parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": stage.schedule.decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=stage.schedule.rate, betas=(0.9, 0.98), fused=True)


def run_settings(name: str, schedule: Schedule) -> dict[str, Any]:
    """What must agree between a checkpoint and the run that continues it."""
    return {"stage": name, **asdict(schedule)}


def checkpoint_path(directory: Path, stage_name: str) -> Path:
    """Where a stage keeps its state."""
    return directory / f"{stage_name}.checkpoint"


@dataclass
class Training:
    """One stage being trained in a directory.

    Attributes:
        stage: what to train.
        directory: holds ``<stage>.checkpoint`` and ``<stage>.jsonl``.
        every: steps between two lines of the log, each with a checkpoint.
        exam_every: steps between two examinations on held-out scenes.
        workers: processes that draw scenes ahead; 0 draws them in line. Results are the same.
    """

    stage: Stage
    directory: Path
    every: int = 100
    exam_every: int = 500
    workers: int = 0

    def __post_init__(self) -> None:
        self.optimizer = _optimizer(self.stage)
        self.step = 0
        self.images_per_second = 0.0

    @property
    def path(self) -> Path:
        """The stage's checkpoint."""
        return checkpoint_path(self.directory, self.stage.name)

    def run(self, stop_at: int | None = None) -> None:
        """Train from the last checkpoint, if any, up to ``stop_at`` or the end of the schedule."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._restore()
        last = min(stop_at or self.stage.schedule.steps, self.stage.schedule.steps)
        figures: dict[str, list[float]] = defaultdict(list)
        started, first = time.monotonic(), self.step
        batches = _batches(self.stage, first, last, self.workers)
        for batch in tqdm(batches, desc=self.stage.name, initial=first, total=last, mininterval=10):
            for name, value in self._descend(batch).items():
                figures[name].append(value)
            if self.step % self.every == 0 or self.step == last:
                scenes = (self.step - first) * self.stage.schedule.batch
                self.images_per_second = scenes / (time.monotonic() - started)
                self._report(figures, last)
                figures.clear()

    def _descend(self, batch: Any) -> dict[str, float]:
        factor = self.stage.schedule.factor(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.stage.schedule.rate * factor
        loss, figures = self.stage.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        learning = [p for group in self.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(learning, 1.0)
        self.optimizer.step()
        self.step += 1
        return {"loss": loss.item(), **figures}

    def _report(self, figures: dict[str, list[float]], last: int) -> None:
        line: dict[str, Any] = {"stage": self.stage.name, "step": self.step, "of": self.stage.schedule.steps}
        line["scenes_per_second"] = round(self.images_per_second, 1)
        line.update({name: round(float(np.mean(values)), 4) for name, values in figures.items()})
        if self.step % self.exam_every == 0 or self.step == last:
            line["held_out"] = {name: round(value, 4) for name, value in self.stage.held_out().items()}
        with (self.directory / f"{self.stage.name}.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        save_checkpoint(self.path, self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "run": run_settings(self.stage.name, self.stage.schedule),
            "step": self.step,
            "weights": self.stage.trained().state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def _restore(self) -> None:
        content = load_for_run(self.path, run_settings(self.stage.name, self.stage.schedule))
        self.stage.trained().load_state_dict(content["weights"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step = content["step"]
