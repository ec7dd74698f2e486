"""The first stage of training: the tower learns to say what each patch shows."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from tokcomp.embedded.codes import WIDTH as TOWER_WIDTH
from tokcomp.embedded.glyphs import Split
from tokcomp.embedded.hard.codes import SPANS
from tokcomp.embedded.hard.forward import Forward
from tokcomp.embedded.hard.scenes import CELLS, SIDE, draw_plans, paint
from tokcomp.embedded.processor import MEAN, STD
from tokcomp.embedded.training.loop import Schedule, step_generator
from tokcomp.embedded.training.vision import encoder_of

EXAM_SCENES = 256
_SHARPNESS = 6.0  # logits are this many times a feature's component
_EASE_UNTIL = 0.25  # share of the stage in which easy scenes fade out


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


def moved(batch: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    """The tensors on ``device``, without waiting for it."""
    return tuple(tensor.to(device, non_blocking=True) for tensor in batch)


@cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    # Cached, as a constant made anew would have the device wait.
    return torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)


def normalised(pixels: Tensor) -> Tensor:
    """Pixel values (b, 3, 96, 96) of images (b, 96, 96, 3), as the processor makes them."""
    mean, std = _statistics(pixels.device)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


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

    def _graded(self, batch: Scenes, split: Split) -> tuple[Tensor, dict[str, Tensor]]:
        scenes = Scenes(*moved(batch, self.network.head.weight.device))
        with torch.no_grad():
            pixels, owner = paint(scenes, split)
        hidden, final = self.forward.features(normalised(pixels), last=True)
        assert final is not None
        logits = self.network.head(encoder_of(self.model.model.vision_tower).post_layernorm(final[:, 0].float()))
        loss, figures = _patch_loss(self.forward.project(hidden[:, 1:]), owner, scenes)
        return loss + 0.5 * _class_loss(logits, scenes), figures

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Accuracies on fixed scenes of the test split."""
        rng = step_generator(self.schedule.seed, "hard-vision-exam", 0)
        figures = self._graded(Scenes(*draw_plans(rng, "test", EXAM_SCENES).tensors()), "test")[1]
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
