"""The random control, and the budget fields that the controls share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tokcomp import VISION, Site
from tokcomp.testing.vision_views import alone, random_view
from tokcomp.vision.random import Random

BUDGETED = ["random", "uniform"]


def test_keeps_the_budget_in_image_order() -> None:
    view = random_view([36, 20, 3], (6, 6))
    selection = Random(keep_tokens=10).reduce(view)
    selection.check(36, batch_size=3, valid=view.valid)
    keep = selection.keep
    assert (keep >= 0).sum(1).tolist() == [10, 10, 3]
    for row in keep:
        kept = row[row >= 0].tolist()
        assert kept == sorted(set(kept))
    share = Random(keep_ratio=0.3).reduce(view).keep
    assert (share >= 0).sum(1).tolist() == [11, 6, 1]


def test_the_choice_follows_image_and_seed_only() -> None:
    view = random_view([36, 36], (6, 6))
    keep = Random(seed=1).reduce(view).keep
    torch.manual_seed(99)
    assert torch.equal(keep, Random(seed=1).reduce(view).keep)
    assert torch.equal(keep[1:], Random(seed=1).reduce(alone(view, 1)).keep)
    assert not torch.equal(keep[0], keep[1])
    assert not torch.equal(keep, Random(seed=2).reduce(view).keep)


def test_every_token_is_equally_likely() -> None:
    view = random_view([20] * 400, (4, 5))
    kept = torch.bincount(Random(keep_ratio=0.25).reduce(view).keep.flatten(), minlength=20)
    assert kept.sum() == 400 * 5
    assert ((kept - 100.0).square() / 100).sum() < 44  # chi-square, 19 degrees of freedom: 44 is p = 1e-3


def test_acts_on_the_features() -> None:
    assert Random().sites(24) == (Site.features(),)


@pytest.mark.parametrize("name", BUDGETED)
@pytest.mark.parametrize(
    ("fields", "ratio", "tokens"),
    [
        ({}, 0.25, None),
        ({"keep_tokens": 64}, None, 64),
        ({"keep_ratio": 0.5}, 0.5, None),
        ({"keep_ratio": None, "keep_tokens": 64}, None, 64),
        ({"keep_ratio": None, "keep_tokens": None}, 0.25, None),
    ],
)
def test_the_default_budget_gives_way(
    name: str, fields: dict[str, Any], ratio: float | None, tokens: int | None
) -> None:
    strategy = VISION[name](**fields)
    assert (strategy.keep_ratio, strategy.keep_tokens) == (ratio, tokens)
    spec = strategy.spec()
    assert VISION[str(spec.pop("name"))](**spec) == strategy


@pytest.mark.parametrize("name", BUDGETED)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep_ratio": 0.5, "keep_tokens": 64}, r"give keep_ratio \(0.5\) or keep_tokens \(64\), not both"),
        ({"keep_ratio": 0.0}, "greater than 0"),
        ({"keep_ratio": 1.5}, "less than or equal to 1"),
        ({"keep_tokens": 0}, "greater than or equal to 1"),
        ({"keep": 3}, "Extra inputs"),
    ],
)
def test_bad_budgets_are_refused(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VISION[name](**fields)
