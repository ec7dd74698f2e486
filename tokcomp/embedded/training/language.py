"""Stage L: the language model learns to answer from ideal visual tokens, many of them dropped."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from tokcomp.embedded import vocabulary as v
from tokcomp.embedded.codes import WIDTH, visual_codes
from tokcomp.embedded.matching import start_matching
from tokcomp.embedded.scenes import PATCHES, Scene, draw_scene
from tokcomp.embedded.training.dropping import draw_kept
from tokcomp.embedded.training.loop import Schedule, step_generator
from tokcomp.embedded.training.packing import (
    Answered,
    PackedQuestions,
    assemble,
    draw_questions,
    grade,
    mean_accuracies,
    pack,
)
from tokcomp.embedded.training.targets import patch_codes, patch_targets

QUESTIONS_PER_SCENE = 14
_KEPT = (12, 20, 20, 28, 28, 40, 72)
_NOISE = 0.045  # per dimension
_EXAM_SCENES = 96


class LanguageBatch(NamedTuple):
    """Ideal visual tokens (b, 144, d), kept patches (b, k), position modes (b,), questions."""

    features: Tensor
    kept: Tensor
    compact: Tensor
    questions: PackedQuestions


def ideal_features(scenes: list[Scene], rng: np.random.Generator) -> Tensor:
    """Sums of codes (b, 144, 128) with the faults a tower makes: weak codes, a second digit, noise."""
    targets = patch_targets(scenes)
    codes, shape = patch_codes(targets), targets.glyph.shape

    def strength(low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (*shape, 1)).astype(np.float32))

    sure = strength(0.55, 1)
    other = visual_codes()[v.ids(v.DIGITS)][torch.from_numpy(rng.integers(0, 10, shape))]
    glyph = sure * codes.digit + (1 - sure) * other + strength(0.7, 1) * codes.colour
    glyph = glyph + strength(0.6, 1) * codes.rank_x + strength(0.6, 1) * codes.rank_y
    background = strength(0.2, 1) * codes.photo
    noise = torch.from_numpy(rng.standard_normal((*shape, WIDTH), dtype=np.float32))
    return torch.where(targets.glyph[..., None], glyph, background) + codes.layer + _NOISE * noise


def language_batch(scenes: list[Scene], rng: np.random.Generator, kept: int) -> LanguageBatch:
    """Ideal tokens, random drops and random questions for ``scenes``."""
    questions = pack([draw_questions(scene, rng, QUESTIONS_PER_SCENE) for scene in scenes])
    return LanguageBatch(
        ideal_features(scenes, rng),
        torch.from_numpy(draw_kept(scenes, rng, kept)),
        torch.from_numpy(rng.random(len(scenes)) < 0.5),
        questions,
    )


def answer(
    model: LlavaForConditionalGeneration, features: Tensor, kept: Tensor, compact: Tensor, questions: PackedQuestions
) -> Answered:
    """How ``model`` answers given visual tokens (b, 144, d); see `assemble`."""
    embeddings = model.get_input_embeddings().weight
    fed = assemble(questions, features, kept, compact, embeddings)
    hidden = model.model.language_model(
        inputs_embeds=fed.embeddings, attention_mask=fed.mask, position_ids=fed.positions, use_cache=False
    ).last_hidden_state
    return grade(hidden[:, fed.start :], questions, embeddings)


class LanguageStage:
    """Stage L as the loop sees it."""

    name = "language"

    def __init__(self, model: LlavaForConditionalGeneration, schedule: Schedule) -> None:
        self.schedule = schedule
        self.model = model
        start_matching(model)

    def trained(self) -> nn.Module:
        """The language model, embeddings included though they do not learn."""
        return self.model.model.language_model

    def batch(self, step: int) -> LanguageBatch:
        """Training scenes, never painted, with a random number of tokens kept."""
        rng = step_generator(self.schedule.seed, self.name, step)
        scenes = [draw_scene(rng, "train") for _ in range(self.schedule.batch)]
        return language_batch(scenes, rng, int(rng.choice(_KEPT)))

    def loss(self, batch: LanguageBatch) -> tuple[Tensor, dict[str, float]]:
        """Cross entropy of the answers."""
        answered = answer(self.model, *batch)
        return answered.loss, answered.accuracies()

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Accuracy on scenes of the test split with all tokens kept."""
        rng = step_generator(self.schedule.seed, "language-exam", 0)
        parts = []
        for _ in range(0, _EXAM_SCENES, 16):
            scenes = [draw_scene(rng, "test") for _ in range(16)]
            parts.append(self.loss(language_batch(scenes, rng, PATCHES))[1])
        return mean_accuracies(parts)
