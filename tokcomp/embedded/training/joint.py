"""Stage J: the language model learns to read the frozen tower's real features.

The tower stays frozen on purpose. Were it trained together with random drops, it would learn to
write what the glyphs show into background patches, and dropping at random would stop hurting.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from tokcomp.embedded.questions import Question
from tokcomp.embedded.scenes import PATCHES, Scene, draw_scene, render
from tokcomp.embedded.training.dropping import draw_kept
from tokcomp.embedded.training.language import answer
from tokcomp.embedded.training.loop import Schedule, step_generator
from tokcomp.embedded.training.packing import (
    KIND_NAMES,
    Answered,
    PackedQuestions,
    draw_questions,
    mean_accuracies,
    pack,
)
from tokcomp.embedded.training.vision import Tower, features_before_last, to_pixels

QUESTIONS_PER_SCENE = 12
_KEPT = (12, 20, 28, 40, 72, 144, 144)
_EXAM_SCENES = 96


class JointBatch(NamedTuple):
    """Pixel values (b, 3, 96, 96), kept patches (b, k), position modes (b,), questions."""

    pixels: Tensor
    kept: Tensor
    compact: Tensor
    questions: PackedQuestions


def joint_batch(
    scenes: list[Scene], rows: list[list[tuple[int, Question]]], kept: NDArray[np.int64], compact: NDArray[np.bool_]
) -> JointBatch:
    """Painted scenes with their questions, kept patches (b, k) and position modes (b,)."""
    pixels = to_pixels([render(scene) for scene in scenes])
    return JointBatch(pixels, torch.from_numpy(kept), torch.from_numpy(compact), pack(rows))


def answer_batch(model: LlavaForConditionalGeneration, batch: JointBatch) -> Answered:
    """How the model answers; the tower passes no gradient."""
    with torch.no_grad():
        hidden = features_before_last(model.model.vision_tower, batch.pixels)[:, 1:]  # (b, 144, d)
    visual = model.model.multi_modal_projector(hidden)
    return answer(model, visual, batch.kept, batch.compact, batch.questions)


class _Readers(nn.Module):
    """What learns in this stage; the projector sees one patch at a time and so cannot leak."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.projector = model.model.multi_modal_projector
        self.language = model.model.language_model


class JointStage:
    """Stage J as the loop sees it."""

    name = "joint"

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        schedule: Schedule,
        vision: dict[str, Tensor],
        language: dict[str, Tensor],
    ) -> None:
        """Start from the weights the other two stages saved."""
        self.schedule = schedule
        self.model = model
        Tower(model).load_state_dict(vision)
        model.model.language_model.load_state_dict(language)
        model.model.vision_tower.requires_grad_(False)
        self.readers = _Readers(model)

    def trained(self) -> nn.Module:
        """Projector and language model."""
        return self.readers

    def batch(self, step: int) -> JointBatch:
        """Training scenes with a random number of tokens kept, often all."""
        rng = step_generator(self.schedule.seed, self.name, step)
        scenes = [draw_scene(rng, "train") for _ in range(self.schedule.batch)]
        rows = [draw_questions(scene, rng, QUESTIONS_PER_SCENE) for scene in scenes]
        kept = draw_kept(scenes, rng, int(rng.choice(_KEPT)))
        return joint_batch(scenes, rows, kept, rng.random(len(scenes)) < 0.5)

    def loss(self, batch: JointBatch) -> tuple[Tensor, dict[str, float]]:
        """Cross entropy of the answers."""
        answered = answer_batch(self.model, batch)
        return answered.loss, answered.accuracies()

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Accuracy on scenes of the test split with all tokens kept."""
        rng = step_generator(self.schedule.seed, "joint-exam", 0)
        parts = []
        for _ in range(0, _EXAM_SCENES, 16):
            scenes = [draw_scene(rng, "test") for _ in range(16)]
            rows = [draw_questions(scene, rng, 2 * len(KIND_NAMES)) for scene in scenes]
            everything = draw_kept(scenes, rng, PATCHES)
            parts.append(self.loss(joint_batch(scenes, rows, everything, np.ones(len(scenes), bool)))[1])
        return mean_accuracies(parts)
