"""Rotary positions of keys that are cached already."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rerotate", "rotation", "turn"]


def rerotate(keys: Tensor, delta: Tensor, inv_freq: Tensor, *, interleaved: bool = False) -> Tensor:
    """Rotate cached keys from their old position to a new one, as if they had been rotated there at once.

    Rotations add up, so only the difference matters. Half-split convention (LLaMA, Qwen): dimension i is paired with
    dimension ``i + d_rot / 2`` and turns by ``delta * inv_freq[i]``. A constant factor that some models put on cos and
    sin (YaRN's attention scaling) is in the keys already and stays as it is.

    Args:
        keys: keys rotated at their old positions ``[b, g, l, d]``.
        delta: new minus old position ``[b, g, l]`` (broadcastable), or ``[b, g, l, d_rot / 2]`` where each frequency
            has a position axis of its own (multimodal RoPE).
        inv_freq: angle per position of each pair ``[d_rot / 2]``; dimensions from ``d_rot`` on are left alone.
        interleaved: dimension ``2 i`` is paired with ``2 i + 1`` instead (GLM, Cohere).

    Returns:
        New keys of the same shape and dtype, computed in float32.

    Raises:
        ValueError: more frequencies than pairs of dimensions.
    """
    return turn(keys, *rotation(delta, inv_freq, per_frequency=delta.dim() == keys.dim()), interleaved=interleaved)


def rotation(delta: Tensor, inv_freq: Tensor, *, per_frequency: bool = False) -> tuple[Tensor, Tensor]:
    """Cosine and sine ``[b, g, l, d_rot / 2]`` of the turn by ``delta`` positions; arguments as in :func:`rerotate`."""
    angle = (delta.float() if per_frequency else delta.float()[..., None]) * inv_freq.float()
    return angle.cos(), angle.sin()


def turn(keys: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """Keys ``[b, g, l, d]`` turned by what :func:`rotation` gave.

    Raises:
        ValueError: more frequencies than pairs of dimensions.
    """
    half = cos.shape[-1]
    if 2 * half > keys.shape[-1]:
        raise ValueError(f"{half} frequencies turn {2 * half} dimensions, but keys have only {keys.shape[-1]}")
    if interleaved:
        first, second = keys[..., 0 : 2 * half : 2].float(), keys[..., 1 : 2 * half : 2].float()
    else:
        first, second = keys[..., :half].float(), keys[..., half : 2 * half].float()
    pair = first * cos - second * sin, second * cos + first * sin
    turned = (torch.stack(pair, dim=-1).flatten(-2) if interleaved else torch.cat(pair, dim=-1)).to(keys.dtype)
    return turned if 2 * half == keys.shape[-1] else torch.cat((turned, keys[..., 2 * half :]), dim=-1)
