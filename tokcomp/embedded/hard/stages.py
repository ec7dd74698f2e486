"""The two stages of training: the tower learns to say what patches show, then the language model to answer from that.

The tower is frozen in the second stage. Were it trained along, it would learn to write what the glyphs show into background
patches. No visual token is dropped inside the language model in training, and before it mostly background is, so that the
model knows shortened inputs and yet is not taught to do without the tokens it needs.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from tokcomp.embedded.codes import WIDTH as TOWER_WIDTH
from tokcomp.embedded.hard.codes import SPANS
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
from tokcomp.embedded.hard.scenes import CELLS, SIDE, draw_plans, paint
from tokcomp.embedded.processor import MEAN, STD
from tokcomp.embedded.scenes import PATCHES
from tokcomp.embedded.training.loop import Schedule, step_generator
from tokcomp.embedded.training.vision import encoder_of

_SHARPNESS = 6.0  # logits are this many times a feature's component
_EXAM_SCENES = 256
_EASE_UNTIL = 0.25  # share of the vision stage in which easy scenes fade out
_CURRICULUM_UNTIL = 0.3  # share of the language stage in which one-lookup questions fade out
_DROPPED_SHARE = 0.35
_KEPT = (24, 36, 48, 72, 100)


class Scenes(NamedTuple):
    """`Plans` as tensors; see there."""

    digit: Tensor
    colour: Tensor
    glyph: Tensor
    place: Tensor
    warp: Tensor
    paint: Tensor
    photo: Tensor
    gain: Tensor


class LanguageBatch(NamedTuple):
    """Scenes with their questions; ``kept`` (b,) says how many patches stay, ``noise`` (b, 144) which, ``compact`` (b,)
    whether those close ranks."""

    scenes: Scenes
    questions: PackedQuestions
    kept: Tensor
    noise: Tensor
    compact: Tensor


def _moved(batch: Scenes | PackedQuestions, device: torch.device) -> tuple[Tensor, ...]:
    return tuple(tensor.to(device, non_blocking=True) for tensor in batch)


def normalised(pixels: Tensor) -> Tensor:
    """Pixel values (b, 3, 96, 96) of images (b, 96, 96, 3), as the processor makes them."""
    mean, std = torch.tensor(MEAN, device=pixels.device), torch.tensor(STD, device=pixels.device)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


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


class Tower(nn.Module):
    """Vision tower, projector and the head that gives the class token its task."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.head = nn.Linear(TOWER_WIDTH, 18 + CELLS)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


class VisionStage:
    """Every patch is asked for its digit, colour and place; the class token for all that the scene holds."""

    name = "vision"

    def __init__(self, model: LlavaForConditionalGeneration, schedule: Schedule, forward: Forward) -> None:
        self.schedule, self.forward, self.model = schedule, forward, model
        self.network = Tower(model)

    def trained(self) -> nn.Module:
        """Tower, projector and class head."""
        return self.network

    def batch(self, step: int) -> Scenes:
        """Scenes from easy to full difficulty."""
        rng = step_generator(self.schedule.seed, "hard-vision", step)
        ease = max(0.0, 1 - step / self.schedule.steps / _EASE_UNTIL)
        return Scenes(*draw_plans(rng, "train", self.schedule.batch, ease).tensors())

    def loss(self, batch: Scenes) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and accuracies of painted scenes."""
        return self._graded(batch, "train")

    def _graded(self, batch: Scenes, split: str) -> tuple[Tensor, dict[str, Tensor]]:
        scenes = Scenes(*_moved(batch, self.network.head.weight.device))
        with torch.no_grad():
            pixels, owner = paint(scenes, split)  # type: ignore[arg-type]
        hidden, final = self.forward.features(normalised(pixels), last=True)
        assert final is not None
        logits = self.network.head(encoder_of(self.model.model.vision_tower).post_layernorm(final[:, 0].float()))
        loss, figures = _patch_loss(self.forward.project(hidden[:, 1:]), owner, scenes)
        return loss + 0.5 * _class_loss(logits, scenes), figures

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Accuracies on fixed scenes of the test split."""
        rng = step_generator(self.schedule.seed, "hard-vision-exam", 0)
        figures = self._graded(Scenes(*draw_plans(rng, "test", _EXAM_SCENES).tensors()), "test")[1]
        return {name: float(value) for name, value in figures.items()}


def _patch_loss(features: Tensor, owner: Tensor, scenes: Scenes) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of visual tokens (b, 144, 192) against what their patches show, and accuracies per patch and glyph."""
    cell, glyph = owner.clamp(min=0), owner >= 0
    truths = {
        "digit": (scenes.digit.gather(1, cell), 2.0),
        "colour": (scenes.colour.gather(1, cell), 0.7),
        "cell": (cell, 0.3),
        "row": (cell // SIDE, 0.3),
        "column": (cell % SIDE, 0.3),
        "layer": (glyph.long(), 0.7),
    }
    target = torch.zeros_like(features)
    loss, figures, number = features.new_zeros(()), {}, glyph.sum()
    for name, (truth, weight) in truths.items():
        asked = torch.ones_like(glyph) if name == "layer" else glyph
        truth = truth.clamp(min=0)
        logits = features[..., SPANS[name]]
        told = F.cross_entropy(_SHARPNESS * logits.transpose(1, 2), truth, reduction="none")
        loss = loss + weight * (told * asked).sum() / asked.sum()
        figures[name] = ((logits.argmax(-1) == truth) & asked).sum() / asked.sum()
        target[..., SPANS[name]] = F.one_hot(truth, logits.shape[-1]).float() * asked[..., None]
    distance = (features - target).square().sum(-1)
    background = (distance * ~glyph).sum() / (~glyph).sum()
    loss = loss + 0.15 * ((distance * glyph).sum() / number + 0.3 * background)
    figures["glyph_digit"] = _glyph_accuracy(features.detach(), cell, glyph, scenes.digit)
    return loss, figures


def _glyph_accuracy(features: Tensor, cell: Tensor, glyph: Tensor, digit: Tensor) -> Tensor:
    """Share of glyphs whose patches together name the right digit."""
    votes = (features[..., SPANS["digit"]] * glyph[..., None]).float()
    summed = torch.zeros(len(digit), CELLS, votes.shape[-1], device=votes.device)
    summed.scatter_add_(1, cell[..., None].expand_as(votes), votes)
    there = digit >= 0
    return ((summed.argmax(-1) == digit) & there).sum() / there.sum()


def _class_loss(logits: Tensor, scenes: Scenes) -> Tensor:
    """Which digits and colours are present, and how many glyphs."""
    there = scenes.digit >= 0
    present = torch.zeros(len(logits), 19, device=logits.device)
    # Empty cells write to a column of their own.
    present.scatter_(1, torch.where(there, scenes.digit, 18), 1.0)
    present.scatter_(1, torch.where(there, scenes.colour + 10, 18), 1.0)
    number = there.sum(1) - 1
    return 2 * F.binary_cross_entropy_with_logits(logits[:, :18], present[:, :18]) + 0.4 * F.cross_entropy(
        logits[:, 18:], number
    )


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
        self, rng: np.random.Generator, number: int, split: str, progress: float, dropped: float
    ) -> LanguageBatch:
        plans = draw_plans(rng, split, number)  # type: ignore[arg-type]
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
        answered = self.answered(batch, "train")
        return answered.loss, answered.accuracies()

    def answered(self, batch: LanguageBatch, split: str) -> Answered:
        """How the model answers a batch."""
        embeddings = self.model.get_input_embeddings().weight
        device = embeddings.device
        scenes, questions = Scenes(*_moved(batch.scenes, device)), PackedQuestions(*_moved(batch.questions, device))
        kept, noise, compact = (t.to(device, non_blocking=True) for t in batch[2:])
        with torch.no_grad():
            pixels, owner = paint(scenes, split)  # type: ignore[arg-type]
            hidden, _ = self.forward.features(normalised(pixels))
            alive = glyphs_first(owner, noise, kept)
        features = self.forward.project(hidden[:, 1:])
        fed = assemble(questions, features, alive, compact, embeddings, self.forward.dtype)
        states = self.forward.language(fed.embeddings, fed.mask, fed.positions)
        return grade(states[:, BEFORE:], questions, embeddings)

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Accuracies on fixed scenes of the test split, nothing dropped."""
        rng = step_generator(self.schedule.seed, "hard-language-exam", 0)
        answered = self.answered(self._drawn(rng, _EXAM_SCENES, "test", 1.0, 0.0), "test")
        accuracies = {name: float(value) for name, value in answered.accuracies().items()}
        figures = {name: value for name, value in accuracies.items() if not math.isnan(value)}
        figures["hard_mean"] = float(np.mean([value for name, value in figures.items() if name in KINDS]))
        return figures
