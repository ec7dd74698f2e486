"""Random numbers that depend on nothing but their seed: a counter-based hash in place of a generator."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["uniform"]

_WORD = 1 << 64
_BITS = 24
"""Random bits of a result: as many as a float32 below 1 holds exactly."""


def _signed(value: int) -> int:
    """The int64 with the bits of ``value`` modulo 2^64."""
    value %= _WORD
    return value - _WORD if value >= _WORD // 2 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)
_STREAM = _signed(0xD1342543DE82EF95)


def uniform(digest: Tensor, n: int, *, seed: int, stream: int = 0) -> Tensor:
    """Uniform random numbers in [0, 1), ``[b, n]`` float32; row ``i`` depends on ``digest[i]``, ``seed`` and
    ``stream``.

    Every number is the splitmix64 hash (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA
    2014) of its place in a sequence that starts at a hash of the three. Integer arithmetic alone decides, so the
    numbers are the same on every device, in every batch and for every ``n`` that reaches them; no generator is touched
    and the device is not waited for.

    Args:
        digest: ``[b]`` integers, one per sample, such as ``view.digest``.
        n: numbers per sample.
        seed: any integer.
        stream: any integer; streams of one seed are independent (one per stage, layer or head).
    """
    key = _mix(_mix(digest.long() + _signed(seed * _GOLDEN)) ^ _signed((stream + 1) * _STREAM))
    counter = torch.arange(1, n + 1, device=digest.device) * _GOLDEN  # int64 arithmetic wraps, as a hash wants it
    bits = _shift(_mix(key[..., None] + counter), 64 - _BITS)
    return bits.float() * 2.0**-_BITS


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 on int64."""
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch shifts the sign in, so it is masked off."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
