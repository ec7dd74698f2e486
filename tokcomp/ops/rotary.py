"""Rotary positions of keys that are cached already."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["mean_rotation", "rerotate", "rotation", "turn", "unrotate"]


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
    angle = (delta.float() if per_frequency else delta.float()[..., None]) * inv_freq.to(delta.device).float()
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


def unrotate(query: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """Queries as they were before their rotation (but for the factor that some models put on cos and sin).

    Args:
        query: rotated queries ``[b, h, t, d]``.
        cos, sin: the tables by which they were rotated ``[b|1, t, d_rot]``.
        interleaved: as in :func:`rerotate`.

    Returns:
        ``[b, h, t, d]`` in float32.
    """
    width = cos.shape[-1]
    length = (cos[:1, :1, :1].float() ** 2 + sin[:1, :1, :1].float() ** 2).sqrt()
    cos, sin = (table.float()[:, None] / length[:, None] for table in (cos, sin))  # (b | 1, 1, t, d_rot)
    turned = query[..., :width].float()
    if interleaved:
        other = torch.stack((-turned[..., 1::2], turned[..., 0::2]), dim=-1).flatten(-2)
    else:
        other = torch.cat((-turned[..., width // 2 :], turned[..., : width // 2]), dim=-1)
    back = turned * cos - other * sin
    return back if width == query.shape[-1] else torch.cat((back, query[..., width:].float()), dim=-1)


def mean_rotation(start: Tensor, steps: int, inv_freq: Tensor, width: int, *, interleaved: bool = False) -> Tensor:
    """The mean of the rotations to the positions ``start``, ``start + 1``...

    Args:
        start: first position ``[b]``.
        steps: positions.
        inv_freq: ``[d_rot / 2]``.
        width: size of a head d; what lies behind d_rot is not rotated.
        interleaved: as in :func:`rerotate`.

    Returns:
        ``[b, d, d]`` float32, to be multiplied with a column vector.
    """
    at = start.float()[:, None] + torch.arange(steps, device=start.device)
    angle = at[..., None] * inv_freq.to(at.device).float()  # (b, steps, d_rot / 2)
    cos, sin = angle.cos().mean(dim=1), angle.sin().mean(dim=1)
    half = inv_freq.shape[0]
    pair = torch.arange(half, device=start.device)
    first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + half)
    matrix = torch.eye(width, device=start.device).repeat(start.shape[0], 1, 1)
    matrix[:, first, first] = matrix[:, second, second] = cos
    matrix[:, first, second], matrix[:, second, first] = -sin, sin
    return matrix
