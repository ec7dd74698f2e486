"""Stage V: the tower and projector learn to describe every patch by a sum of visual codes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel, LlavaForConditionalGeneration
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from tokcomp.embedded import vocabulary as v
from tokcomp.embedded.codes import WIDTH, visual_codes
from tokcomp.embedded.processor import MEAN, STD
from tokcomp.embedded.scenes import COLOUR_NAMES, DENSE, SCENES, Scene, draw_scene, render
from tokcomp.embedded.training.loop import Schedule, step_generator
from tokcomp.embedded.training.targets import PatchTargets, code_sums, patch_targets

_SHARPNESS = 6.0  # logits are this many times the product of feature and code
_COUNTS = 9  # the class token tells 0 to 8 glyphs apart
_EASY_UNTIL, _EASE_UNTIL = 0.05, 0.25  # shares of the stage: all easy, some easy
_DENSE_EARLY, _DENSE_LATE, _DENSE_SWITCH = 0.5, 0.25, 0.3
_EXAM_SCENES = 160


def to_pixels(images: list[np.ndarray]) -> Tensor:
    """Normalise images (96, 96, 3) into pixel values (b, 3, 96, 96), as the processor does."""
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


class VisionBatch(NamedTuple):
    """Pixel values (b, 3, 96, 96) and what their patches show."""

    pixels: Tensor
    targets: PatchTargets


class Tower(nn.Module):
    """Vision tower, projector and the head that gives the class token its task."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.head = nn.Linear(WIDTH, 10 + len(COLOUR_NAMES) + _COUNTS + len(v.PHOTO_NAMES))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Projected patches (b, 144, 128) and the head's logits on the class token (b, 35)."""
        hidden, tower = features_before_last(self.tower, pixels), encoder_of(self.tower)
        final = _class_row(tower.encoder.layers[-1], hidden)
        return self.projector(hidden[:, 1:]), self.head(tower.post_layernorm(final))


def encoder_of(tower: CLIPVisionModel) -> CLIPVisionModel:
    # Older transformers wrap the tower once more.
    return getattr(tower, "vision_model", tower)


def features_before_last(tower: CLIPVisionModel, pixels: Tensor) -> Tensor:
    """Class token and patches (b, 145, 128) before the tower's last layer, where LLaVA reads."""
    encoder = encoder_of(tower)
    hidden = encoder.pre_layrnorm(encoder.embeddings(pixels))
    for layer in encoder.encoder.layers[:-1]:
        hidden = layer(hidden, attention_mask=None)
    return hidden


def _class_row(layer: CLIPEncoderLayer, hidden: Tensor) -> Tensor:
    """The class token's row (b, d) of an encoder layer; features need no other row of the last."""
    attention, width = layer.self_attn, hidden.shape[-1]
    normed = layer.layer_norm1(hidden)
    query, key, value = (
        projection(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for projection, x in (
            (attention.q_proj, normed[:, :1]),
            (attention.k_proj, normed),
            (attention.v_proj, normed),
        )
    )
    mixed = F.scaled_dot_product_attention(query, key, value).reshape(-1, width)
    row = hidden[:, 0] + attention.out_proj(mixed)
    return row + layer.mlp(layer.layer_norm2(row))


def vision_loss(features: Tensor, logits: Tensor, targets: PatchTargets) -> tuple[Tensor, dict[str, float]]:
    """Loss of projected patches (b, 144, 128) and class logits (b, 35), with accuracies.

    Each patch is asked for its digit, colour, ranks and layer by similarity with the codes, and
    pulled towards the sum of its codes; the class token is asked what the whole scene holds.
    """
    similar = features @ visual_codes().T * _SHARPNESS  # (b, 144, words)
    glyph, ranked = targets.glyph, targets.glyph & targets.ranked[:, None]
    photo = targets.photo[:, None].expand_as(glyph)
    asked = {
        "digit": (similar[glyph][:, v.ids(v.DIGITS)], targets.digit[glyph], 2.0),
        "colour": (similar[glyph][:, v.ids(v.COLOUR_NAMES)], targets.colour[glyph], 0.7),
        "rank_x": (similar[ranked][:, v.ids(v.COLUMN_RANKS)], targets.rank_x[ranked], 0.5),
        "rank_y": (similar[ranked][:, v.ids(v.ROW_RANKS)], targets.rank_y[ranked], 0.5),
        "layer": (similar[..., v.ids(v.LAYERS)].flatten(0, 1), glyph.flatten().long(), 0.7),
        "photo": (similar[~glyph][:, v.ids(v.PHOTO_NAMES)], photo[~glyph], 0.3),
    }
    loss, figures = 0.5 * _class_loss(logits, targets), {}
    for name, (answers, truth, weight) in asked.items():
        if len(truth):
            loss = loss + weight * F.cross_entropy(answers, truth)
            figures[name] = (answers.argmax(-1) == truth).float().mean().item()
    distance = (features - code_sums(targets)).square().sum(-1)  # (b, 144)
    loss = loss + 0.15 * (distance[glyph].mean() + 0.3 * distance[~glyph].mean())
    return loss, figures


def _class_loss(logits: Tensor, targets: PatchTargets) -> Tensor:
    """Which digits and colours are present, how many glyphs, and (lightly) which photo."""
    sizes = [targets.present.shape[1], _COUNTS, len(v.PHOTO_NAMES)]
    present, glyphs, photo = torch.split(logits, sizes, 1)
    loss = 2 * F.binary_cross_entropy_with_logits(present, targets.present)
    return loss + 0.4 * F.cross_entropy(glyphs, targets.glyphs) + 0.05 * F.cross_entropy(photo, targets.photo)


class VisionStage:
    """Stage V as the loop sees it."""

    name = "vision"

    def __init__(self, model: LlavaForConditionalGeneration, schedule: Schedule) -> None:
        self.schedule = schedule
        self.network = Tower(model)

    def trained(self) -> nn.Module:
        """Tower, projector and class head."""
        return self.network

    def batch(self, step: int) -> VisionBatch:
        """Scenes from easy to full difficulty, part of them crowded to show more glyphs."""
        rng = step_generator(self.schedule.seed, self.name, step)
        progress = step / self.schedule.steps
        # All easy at first, then fading out linearly.
        ease = min(1.0, max(0.0, (_EASE_UNTIL - progress) / (_EASE_UNTIL - _EASY_UNTIL)))
        share = _DENSE_EARLY if progress < _DENSE_SWITCH else _DENSE_LATE
        dense = round(share * self.schedule.batch)
        scenes = []
        for index in range(self.schedule.batch):
            rules = DENSE if index < dense else SCENES
            scenes.append(draw_scene(rng, "train", rules.easy() if rng.random() < ease else rules))
        return vision_batch(scenes)

    def loss(self, batch: VisionBatch) -> tuple[Tensor, dict[str, float]]:
        """See `vision_loss`."""
        features, logits = self.network(batch.pixels)
        return vision_loss(features, logits, batch.targets)

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Accuracy per patch over fixed scenes of the test split."""
        rng = step_generator(self.schedule.seed, "vision-exam", 0)
        scenes = [draw_scene(rng, "test") for _ in range(_EXAM_SCENES)]
        parts = [self.loss(vision_batch(scenes[i : i + 32]))[1] for i in range(0, len(scenes), 32)]
        return {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}


def vision_batch(scenes: list[Scene]) -> VisionBatch:
    """Render scenes and state what their patches show."""
    return VisionBatch(to_pixels([render(scene) for scene in scenes]), patch_targets(scenes))
