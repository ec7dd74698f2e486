"""The second stage of training: the language model learns to answer from what the tower says.

The tower is frozen. Were it trained along, it would learn to write what the glyphs show into background patches. No visual
token is dropped inside the language model in training, and before it mostly background is, so that the model knows shortened
inputs and yet is not taught to do without the tokens it needs.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from tokcomp.embedded.glyphs import Split
from tokcomp.embedded.hard.architecture import DIGITS_FROM
from tokcomp.embedded.hard.forward import Forward
from tokcomp.embedded.hard.packing import (
    BEFORE,
    KIND_NAMES,
    Answered,
    PackedQuestions,
    assemble,
    draw_questions,
    facts_of,
    grade,
    pack,
)
from tokcomp.embedded.hard.questions import EASY_KINDS, KINDS, LONG_KINDS
from tokcomp.embedded.hard.scenes import CELLS, draw_plans, paint
from tokcomp.embedded.hard.vision_stage import EXAM_SCENES, Scenes, Tower, moved, normalised
from tokcomp.embedded.scenes import PATCHES
from tokcomp.embedded.training.loop import Schedule, step_generator

_CURRICULUM_UNTIL = 0.3  # share of the stage in which one-lookup questions fade out
_SLOW_KINDS = {"count_larger": 1.6, "twin": 1.3}  # asked more often
_DROPPED_SHARE = 0.35
_KEPT = (24, 36, 48, 72, 100)
_GAZE_WEIGHT = 0.05
_GAZE_FROM = DIGITS_FROM - 1  # the first layer whose gaze is guided


class LanguageBatch(NamedTuple):
    """Scenes with their questions; ``kept`` (b,) says how many patches stay, ``noise`` (b, 144) which, ``compact`` (b,)
    whether those close ranks."""

    scenes: Scenes
    questions: PackedQuestions
    kept: Tensor
    noise: Tensor
    compact: Tensor


def glyphs_first(owner: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """Patches that stay (b, 144) bool: one of every glyph, then other glyph patches, then background, by chance.

    Args:
        owner: the cell each patch shows or -1 (b, 144).
        noise: the chance, in [0, 1) (b, 144).
        kept: how many stay (b,).
    """
    slot = owner + 1
    best = torch.full((len(owner), CELLS + 1), -1.0, device=owner.device).scatter_reduce_(1, slot, noise, "amax")
    first = (owner >= 0) & (noise >= best.gather(1, slot))
    score = noise + (owner >= 0).float() + first.float()
    return score.argsort(1, descending=True).argsort(1) < kept[:, None]


def gaze_loss(attention: Tensor, glyph: Tensor, rows: Tensor) -> Tensor:
    """How far attention on visual tokens is from lying evenly on those that show a glyph.

    Args:
        attention: of the last prompt token of each question, mean over heads, on the visual tokens (b, q, 144).
        glyph: the tokens that show a glyph and are not dropped (b, 144).
        rows: which questions are real (b, q).
    """
    share = attention / attention.sum(-1, keepdim=True).clamp(min=1e-8)
    target = glyph.float() / glyph.sum(1, keepdim=True).clamp(min=1)
    told = -(share.clamp(min=1e-8).log() * target[:, None]).sum(-1)
    return (told * rows).sum() / rows.sum()


class _Readers(nn.Module):
    """What learns in the language stage; the projector sees one patch at a time and so cannot leak."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.projector = model.model.multi_modal_projector
        self.language = model.model.language_model


def kind_shares(progress: float) -> list[float]:
    """How often each kind is asked: one-lookup questions first, all kinds from the middle of the curriculum on."""
    ease = max(0.0, 1 - progress / _CURRICULUM_UNTIL)
    shares = dict.fromkeys(KIND_NAMES, 1.0)
    shares.update(dict.fromkeys(EASY_KINDS, 0.5 + 4 * ease))
    shares.update(dict.fromkeys(LONG_KINDS, 0.6))
    shares.update(_SLOW_KINDS)
    return [shares[name] for name in KIND_NAMES]


class LanguageStage:
    """The language model and the projector learn to answer, from the frozen tower's features."""

    name = "language"

    def __init__(
        self, model: LlavaForConditionalGeneration, schedule: Schedule, forward: Forward, vision: dict[str, Tensor]
    ) -> None:
        """Start from the weights that the vision stage saved."""
        self.schedule, self.forward, self.model = schedule, forward, model
        Tower(model).load_state_dict(vision)
        model.model.vision_tower.requires_grad_(False)
        self.readers = _Readers(model)

    def trained(self) -> nn.Module:
        """Projector and language model."""
        return self.readers

    def batch(self, step: int) -> LanguageBatch:
        """Training scenes with their questions, part of them without some of their background."""
        rng = step_generator(self.schedule.seed, "hard-language", step)
        return self._drawn(rng, self.schedule.batch, "train", step / self.schedule.steps, _DROPPED_SHARE)

    def _drawn(
        self, rng: np.random.Generator, number: int, split: Split, progress: float, dropped: float
    ) -> LanguageBatch:
        plans = draw_plans(rng, split, number)
        chance = random.Random(int(rng.integers(2**63)))
        shares = kind_shares(progress)
        rows = [draw_questions(facts, chance, shares) for facts in facts_of(plans.digit, plans.colour)]
        kept = np.where(rng.random(number) < dropped, rng.choice(_KEPT, number), PATCHES)
        noise = rng.random((number, PATCHES), dtype=np.float32)
        compact = torch.from_numpy(rng.random(number) < 0.5)
        scenes = Scenes(*plans.tensors())
        return LanguageBatch(scenes, pack(rows), torch.from_numpy(kept), torch.from_numpy(noise), compact)

    def loss(self, batch: LanguageBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross entropy of the answers."""
        answered, gaze = self.answered(batch, "train", guided=True)
        return answered.loss + _GAZE_WEIGHT * gaze, {"gaze": gaze.detach(), **answered.accuracies()}

    def answered(self, batch: LanguageBatch, split: Split, *, guided: bool = False) -> tuple[Answered, Tensor]:
        """How the model answers a batch and, if ``guided``, its `gaze_loss` over the layers that are guided."""
        embeddings = self.model.get_input_embeddings().weight
        device = embeddings.device
        scenes, questions = Scenes(*moved(batch.scenes, device)), PackedQuestions(*moved(batch.questions, device))
        kept, noise, compact = (t.to(device, non_blocking=True) for t in batch[2:])
        with torch.no_grad():
            pixels, owner = paint(scenes, split)
            hidden, _ = self.forward.features(normalised(pixels))
            alive = glyphs_first(owner, noise, kept)
        features = self.forward.project(hidden[:, 1:])
        fed = assemble(questions, features, alive, compact, embeddings, self.forward.dtype)
        asked = questions.ends if guided else None
        states, looks = self.forward.language(fed.embeddings, fed.mask, fed.positions, asked, _GAZE_FROM)
        real = questions.kinds >= 0
        gazes = [gaze_loss(look[..., BEFORE - PATCHES : BEFORE], (owner >= 0) & alive, real) for look in looks]
        gaze = torch.stack(gazes).mean() if gazes else states.new_zeros(())
        return grade(states[:, BEFORE:], questions, embeddings), gaze

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Accuracies on fixed scenes of the test split, nothing dropped."""
        rng = step_generator(self.schedule.seed, "hard-language-exam", 0)
        answered, _ = self.answered(self._drawn(rng, EXAM_SCENES, "test", 1.0, 0.0), "test")
        accuracies = {name: float(value) for name, value in answered.accuracies().items()}
        figures = {name: value for name, value in accuracies.items() if not math.isnan(value)}
        figures["hard_mean"] = float(np.mean([value for name, value in figures.items() if name in KINDS]))
        return figures
