"""The random control between two layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from tokcomp.errors import CompatibilityError
from tokcomp.prefill.random import Random
from tokcomp.testing.prefill_views import random_view


def test_depends_on_digest_and_seed_only() -> None:
    view = random_view([40], filter=Random())
    keep = Random().filter(view).keep
    assert torch.equal(Random().filter(replace(view, tokens=view.tokens + 1)).keep, keep)
    assert not torch.equal(Random(seed=1).filter(view).keep, keep)
    assert not torch.equal(Random().filter(replace(view, _digest=view.digest + 1)).keep, keep)


def test_a_token_keeps_its_number_when_others_have_left() -> None:
    view = random_view([60], filter=Random(keep_ratio=0.5))
    chosen = Random(keep_ratio=0.5).filter(view).keep[0]
    among = {
        name: getattr(view, name)[:, chosen] for name in ("tokens", "valid", "sizes", "origin", "image", "protected")
    }
    again = Random(keep_tokens=10).filter(replace(view, **among)).keep[0]
    at_once = Random(keep_tokens=10).filter(view).keep[0]
    assert chosen[again].tolist() == at_once.tolist()


def test_every_token_has_the_same_chance() -> None:
    n, draws = 20, 4000
    base = random_view([n], filter=Random())
    parts = {
        name: getattr(base, name).expand(draws, *getattr(base, name).shape[1:])
        for name in ("tokens", "valid", "sizes", "origin", "image", "protected", "initial")
    }
    view = replace(base, **parts, _digest=torch.arange(draws))
    keep = Random(keep_tokens=5).filter(view).keep
    share = torch.bincount(keep.flatten(), minlength=n) / draws
    assert float((share - 0.25).abs().max()) < 5 * (0.25 * 0.75 / draws) ** 0.5


def test_fields() -> None:
    assert Random(layer=3).acts_after(8) == (2,)
    with pytest.raises(ValidationError, match="not both"):
        Random(keep_ratio=0.5, keep_tokens=3)
    with pytest.raises(ValidationError, match="layer=0"):
        Random(layer=0)
    with pytest.raises(CompatibilityError, match=r"prefill\.random\.layer=0\.1"):
        Random(layer=0.1).acts_after(8)
