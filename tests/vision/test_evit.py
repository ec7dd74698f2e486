"""EViT against a plain loop of the paper's rule."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokcomp import Site
from tokcomp.errors import CompatibilityError
from tokcomp.ops.merging import apply_selection
from tokcomp.testing.vision_views import random_view
from tokcomp.vision.evit import EViT


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(1, 20), min_size=1, max_size=3), ratio=st.sampled_from([0.1, 0.5, 0.7, 1.0]),
       fuse=st.booleans(), order=st.sampled_from(["image", "published"]), seed=st.integers(0, 99))  # fmt: skip
def test_equals_the_plain_rule(counts: list[int], ratio: float, fuse: bool, order: Any, seed: int) -> None:
    view = random_view(counts, (4, 5), site=Site.mid(1), seed=seed)
    selection = EViT(keep_ratio=ratio, fuse=fuse, order=order).reduce(view)
    selection.check(view.n_tokens, batch_size=len(counts), valid=view.valid)
    out, sizes = apply_selection(view.tokens, view.sizes, selection)
    for row, count in enumerate(counts):
        scores = view.cls_attention[row].mean(0)
        ranked = sorted(range(count), key=lambda i, s=scores: (-float(s[i]), i))
        kept = math.ceil(count * ratio)
        others = ranked[kept:] if kept + 1 < count else []
        stays = [i for i in ranked if i not in others]
        stays = sorted(stays) if order == "image" else stays
        expected = [view.tokens[row, i] for i in stays]
        if others and fuse:
            expected.append(sum(scores[i] * view.tokens[row, i] for i in others))
        assert selection.keep[row, : len(stays)].tolist() == stays
        assert int((selection.keep[row] >= 0).sum()) == len(expected)
        torch.testing.assert_close(out[row, : len(expected)], torch.stack(expected), atol=1e-5, rtol=1e-5)
        assert int(sizes[row].sum()) == (count if fuse else len(stays))


def test_layers_are_shares_of_any_depth() -> None:
    assert EViT().sites(12) == (Site.mid(3), Site.mid(6), Site.mid(9))  # the paper's 4th, 7th and 10th
    assert EViT(layers=(-1, 0)).sites(4) == (Site.mid(0), Site.mid(3))
    with pytest.raises(CompatibilityError, match=r"vision.evit.layers=7 lies beyond"):
        EViT(layers=(7,)).sites(4)
