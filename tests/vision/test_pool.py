"""The pooling control; the rule itself is tested in tests/ops/test_pooling.py."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from tokcomp import Site
from tokcomp.ops.merging import apply_selection
from tokcomp.testing.vision_views import random_view
from tokcomp.vision.pool import Pool


@pytest.mark.parametrize(("window", "left"), [(1, 576), (2, 144), (3, 64), (5, 25), (24, 1), (30, 1)])
def test_token_counts(window: int, left: int) -> None:
    assert Pool(window=window).reduce(random_view([576], (24, 24))).keep.shape == (1, left)


def test_a_block_is_the_plain_mean_at_its_first_patch() -> None:
    view = random_view([12], (3, 4), merged=True)
    selection = Pool().reduce(view)
    assert selection.keep.tolist() == [[0, 2, 8, 10]]
    pooled, _ = apply_selection(view.tokens, view.sizes, selection)
    torch.testing.assert_close(pooled[0, 1], view.tokens[0, [2, 3, 6, 7]].mean(0))
    torch.testing.assert_close(pooled[0, 2], view.tokens[0, [8, 9]].mean(0))


def test_fields_and_site() -> None:
    assert Pool().window == 2
    assert Pool().sites(24) == (Site.features(),)
    with pytest.raises(ValidationError):
        Pool(window=0)
