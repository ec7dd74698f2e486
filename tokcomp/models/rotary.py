"""What a decoder's rotary embedding does, found out by asking it: planes of positions, which frequency turns by which plane,
which dimensions are paired."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["pairs_neighbours", "rotary_axes", "rotary_planes", "rotates"]


def rotary_planes(rotary: Any) -> int:
    """Planes of position ids: 3 for multimodal rotary positions (time, row, column), else 1."""
    return 3 if hasattr(rotary, "recomposition_frequencies") else 1


def rotary_axes(rotary: Any) -> Tensor | None:
    """The plane that each frequency turns by ``[d_rot / 2]``; None for a single plane.

    Families deal the frequencies out in sections (Qwen2-VL) or in turn (Qwen3-VL); the embedding's own rule is asked, with
    the planes' numbers in the place of their frequencies.
    """
    if rotary_planes(rotary) == 1:
        return None
    half = rotary.inv_freq.shape[0]
    numbers = torch.arange(3, device=rotary.inv_freq.device, dtype=torch.float32).view(3, 1, 1, 1)
    table = rotary.recomposition_frequencies(numbers.repeat(1, 1, 1, half))[0, 0]
    # Every frequency stands in the table twice: in both halves, or side by side.
    halves = torch.equal(table[:half], table[half:])
    return (table[:half] if halves else table[::2]).long()


def pairs_neighbours(attention: nn.Module, inv_freq: Tensor, table: Tensor) -> bool:
    """Whether rotation pairs dimension 2 i with 2 i + 1 (GLM, Cohere) and not i with i + d_rot / 2.

    The modeling file's own function is asked: turned by one radian, where does the first dimension go?

    Args:
        table: a cosine table of the family ``[..., d_rot]``, or half as wide (gpt-oss).
    """
    turn: Any = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    width = 2 * inv_freq.shape[0]
    if turn is None or width <= 2:
        return False
    unit = torch.zeros(1, 1, 1, width, device=inv_freq.device)
    unit[..., 0] = 1.0
    angle = torch.ones(1, 1, table.shape[-1], device=inv_freq.device)
    turned = turn(unit, unit, angle.cos(), angle.sin())[0]
    return bool(turned[..., 1] != 0)


def rotates(attention: Any) -> bool:
    """Whether a layer rotates queries and keys: SmolLM3 leaves some layers out, Cohere 2 those without a window."""
    if type(attention).__name__ == "Cohere2Attention" and attention.sliding_window is None:
        return False
    return bool(getattr(attention, "use_rope", True))
