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
from collections.abc import Iterator, Mapping
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

    def loss(self, batch: Any) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        """Loss to descend and figures to log; NaN for a figure that the batch says nothing about."""

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


def step_batches(stage: Stage, first: int, last: int, workers: int) -> Iterator[Any]:
    """The batches of steps ``first`` to ``last``, drawn ahead by ``workers`` processes."""
    pinned = next(stage.trained().parameters()).is_cuda
    loader = DataLoader(
        _Steps(stage), batch_size=None, sampler=range(first, last), num_workers=workers, pin_memory=pinned
    )
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


def _mean(values: list[float | Tensor]) -> float:
    """Mean over the batches that say something, NaN if none does."""
    told = [value for value in map(float, values) if not math.isnan(value)]
    return round(sum(told) / len(told), 4) if told else math.nan


@dataclass
class Training:
    """One stage being trained in a directory.

    Attributes:
        stage: what to train.
        directory: holds ``<stage>.checkpoint`` and ``<stage>.jsonl``.
        every: steps between two lines of the log, each with a checkpoint.
        exam_every: steps between two examinations on held-out scenes.
        workers: processes that draw scenes ahead; 0 draws them in line. Results are the same.
        save_every: steps between two checkpoints, a multiple of ``every``; 0: one with every line of the log.
        until: `time.monotonic` at which to stop with a checkpoint, whatever the step.
    """

    stage: Stage
    directory: Path
    every: int = 100
    exam_every: int = 500
    workers: int = 0
    save_every: int = 0
    until: float = math.inf

    def __post_init__(self) -> None:
        self.optimizer = _optimizer(self.stage)
        self.step = 0
        self.images_per_second = 0.0

    @property
    def path(self) -> Path:
        """The stage's checkpoint."""
        return checkpoint_path(self.directory, self.stage.name)

    @property
    def log(self) -> Path:
        """The stage's figures, one JSON object a line."""
        return self.directory / f"{self.stage.name}.jsonl"

    def run(self, stop_at: int | None = None) -> None:
        """Train from the last checkpoint, if any, up to ``stop_at`` or the end of the schedule."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._restore()
        last = min(stop_at or self.stage.schedule.steps, self.stage.schedule.steps)
        figures: dict[str, list[float | Tensor]] = defaultdict(list)
        started, first = time.monotonic(), self.step
        if time.monotonic() > self.until:
            return
        batches = step_batches(self.stage, first, last, self.workers)
        for batch in tqdm(batches, desc=self.stage.name, initial=first, total=last, mininterval=10):
            for name, value in self.descend(batch).items():
                figures[name].append(value)
            stop = self.step == last or time.monotonic() > self.until
            if stop or self.step % self.every == 0:
                scenes = (self.step - first) * self.stage.schedule.batch
                self.images_per_second = scenes / (time.monotonic() - started)
                self._report(figures, stop)
                figures.clear()
            if stop:
                break

    def descend(self, batch: Any) -> dict[str, float | Tensor]:
        """One step of the optimizer; returns its figures."""
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
        # Kept as tensors: reading a number would make the device wait at every step.
        return {"loss": loss.detach(), **figures}

    def _report(self, figures: dict[str, list[float | Tensor]], last: bool) -> None:
        line: dict[str, Any] = {"stage": self.stage.name, "step": self.step, "of": self.stage.schedule.steps}
        line["scenes_per_second"] = round(self.images_per_second, 1)
        line.update({name: _mean(values) for name, values in figures.items() if not math.isnan(_mean(values))})
        if self.step % self.exam_every == 0 or last:
            line["held_out"] = {name: round(value, 4) for name, value in self.stage.held_out().items()}
        with self.log.open("a") as log:
            log.write(json.dumps(line) + "\n")
        if last or not self.save_every or self.step % self.save_every == 0:
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
        # Lines of steps that will be done again.
        lines = self.log.read_text().splitlines(keepends=True)
        self.log.write_text("".join(line for line in lines if json.loads(line)["step"] <= self.step))
