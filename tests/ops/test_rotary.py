"""Re-rotation of cached keys, against rotating them at their new position at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokcomp.ops.rotary import rerotate


def rotated(raw: Tensor, position: Tensor, inv_freq: Tensor) -> Tensor:
    """Half-split rotation as complex multiplication, in float64."""
    half = inv_freq.shape[0]
    pairs = torch.complex(raw[..., :half].double(), raw[..., half : 2 * half].double())
    angle = position[..., None].double() * inv_freq.double()
    pairs = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([pairs.real, pairs.imag, raw[..., 2 * half :].double()], dim=-1)


def frequencies(half: int) -> Tensor:
    return 10000.0 ** (-torch.arange(half) / half)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), half=st.integers(1, 4), rest=st.integers(0, 3), span=st.integers(1, 5000))
def test_equals_rotating_at_the_new_position(seed: int, half: int, rest: int, span: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(2, 3, 7, 2 * half + rest, generator=generator)
    old, new = (torch.randint(0, span, (2, 3, 7), generator=generator) for _ in range(2))
    keys = rotated(raw, old, frequencies(half)).float()
    turned = rerotate(keys, new - old, frequencies(half))
    torch.testing.assert_close(turned.double(), rotated(raw, new, frequencies(half)), atol=3e-3, rtol=0)
    if span < 50:
        torch.testing.assert_close(turned.double(), rotated(raw, new, frequencies(half)), atol=2e-5, rtol=0)


def test_no_move_changes_nothing_and_keeps_the_dtype() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        keys = torch.randn(1, 2, 5, 8).to(dtype)
        turned = rerotate(keys, torch.zeros(1, 1, 5), frequencies(4))
        assert turned.dtype == dtype
        assert torch.equal(turned, keys)


def test_every_frequency_may_have_a_position_of_its_own() -> None:
    raw, old = torch.randn(1, 2, 5, 6), torch.randint(0, 9, (1, 2, 5, 3))
    new = torch.randint(0, 9, (1, 2, 5, 3))
    inv_freq = frequencies(3)
    # A pair turns by its own position: rotate with one frequency at a time and keep that pair.
    keys, wanted = raw.clone().double(), raw.clone().double()
    for pair in range(3):
        for where, position in ((keys, old), (wanted, new)):
            full = rotated(raw, position[..., pair], inv_freq)
            where[..., [pair, pair + 3]] = full[..., [pair, pair + 3]]
    torch.testing.assert_close(rerotate(keys.float(), new - old, inv_freq), wanted.float(), atol=1e-5, rtol=1e-5)


def test_too_many_frequencies_are_refused() -> None:
    with pytest.raises(ValueError, match="5 frequencies turn 10 dimensions, but keys have only 8"):
        rerotate(torch.randn(1, 1, 2, 8), torch.zeros(1, 1, 2), frequencies(5))
