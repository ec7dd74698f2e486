"""What every patch of a scene shows, as tensors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokcomp.embedded import vocabulary as v
from tokcomp.embedded.codes import visual_codes
from tokcomp.embedded.scenes import COLOUR_NAMES, Scene


class PatchTargets(NamedTuple):
    """Truths of a batch of scenes.

    ``glyph`` (b, 144) tells glyph patches from background; ``digit``, ``colour``, ``rank_x`` and
    ``rank_y`` (b, 144) describe the glyph and mean nothing elsewhere; ``photo``, ``glyphs`` (their
    number) and ``ranked`` are (b,); ``present`` (b, 18) marks the digits and colours of the scene.
    """

    glyph: Tensor
    digit: Tensor
    colour: Tensor
    rank_x: Tensor
    rank_y: Tensor
    photo: Tensor
    glyphs: Tensor
    ranked: Tensor
    present: Tensor


def patch_targets(scenes: list[Scene]) -> PatchTargets:
    """Collect the truths of ``scenes``."""
    owner = np.stack([scene.obj.reshape(-1) for scene in scenes])  # (b, 144)
    most = max(len(scene.objects) for scene in scenes)
    facts = np.zeros((len(scenes), most, 4), np.int64)
    present = np.zeros((len(scenes), 10 + len(COLOUR_NAMES)), np.float32)
    for row, scene in enumerate(scenes):
        for index, item in enumerate(scene.objects):
            facts[row, index] = item.digit, item.colour, item.rank_x, item.rank_y
            present[row, [item.digit, 10 + item.colour]] = 1
    per_patch = np.take_along_axis(facts, owner.clip(0)[..., None], 1)  # (b, 144, 4)
    per_patch[..., 2:] = per_patch[..., 2:].clip(max=len(v.COLUMN_RANKS) - 1)
    digit, colour, rank_x, rank_y = torch.from_numpy(per_patch).unbind(-1)
    return PatchTargets(
        glyph=torch.from_numpy(owner >= 0),
        digit=digit,
        colour=colour,
        rank_x=rank_x,
        rank_y=rank_y,
        photo=torch.tensor([scene.photo for scene in scenes]),
        glyphs=torch.tensor([len(scene.objects) for scene in scenes]),
        ranked=torch.tensor([scene.ranked for scene in scenes]),
        present=torch.from_numpy(present),
    )


class PatchCodes(NamedTuple):
    """The code (b, 144, 128) of every trait; ranks are zero in unranked scenes."""

    digit: Tensor
    colour: Tensor
    rank_x: Tensor
    rank_y: Tensor
    photo: Tensor
    layer: Tensor


def patch_codes(targets: PatchTargets) -> PatchCodes:
    """Look up the codes of all traits, whether or not the patch shows them."""
    codes = visual_codes()

    def look_up(words: tuple[str, ...], index: Tensor) -> Tensor:
        return codes[v.ids(words)][index]

    ranked = targets.ranked[:, None, None]
    return PatchCodes(
        look_up(v.DIGITS, targets.digit),
        look_up(v.COLOUR_NAMES, targets.colour),
        look_up(v.COLUMN_RANKS, targets.rank_x) * ranked,
        look_up(v.ROW_RANKS, targets.rank_y) * ranked,
        look_up(v.PHOTO_NAMES, targets.photo)[:, None].expand(-1, targets.glyph.shape[1], -1),
        look_up(v.LAYERS, targets.glyph.long()),
    )


def code_sums(targets: PatchTargets) -> Tensor:
    """What the tower should emit: the sum of the codes of each patch, (b, 144, 128)."""
    codes = patch_codes(targets)
    glyph = codes.digit + codes.colour + codes.rank_x + codes.rank_y
    return torch.where(targets.glyph[..., None], glyph, codes.photo) + codes.layer
