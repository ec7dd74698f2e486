"""MustDrop's vision stage as a strategy; the merge rule itself is tested in tests/ops/test_pooling.py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.golden_cases import folders, group, meta
from tokcomp import VISION, Selection, Site
from tokcomp.errors import CompatibilityError
from tokcomp.ops.merging import apply_selection
from tokcomp.testing.vision_views import random_view
from tokcomp.types import VisionView
from tokcomp.vision.mustdrop import MustDrop

FULL = [
    (folder, case["name"])
    for folder in folders("mustdrop_vision")
    for case in meta(folder)["cases"]
    if "key_set" in case["tensors"]
]


def fresh_view(tokens: torch.Tensor, grid: tuple[int, int], site: Site, depth: int, **signals: Any) -> VisionView:
    b, n = tokens.shape[:2]
    ones = torch.ones(b, n)
    return VisionView(site=site, depth=depth, tokens=tokens, valid=ones.bool(), sizes=ones, protected=~ones.bool(),
                      origin=torch.arange(n).expand(b, n), grid=grid, n_prefix=1, **signals)  # fmt: skip


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "name"), FULL, ids=lambda value: getattr(value, "name", value))
def test_golden_merge_and_key_set(folder: Path, name: str) -> None:
    params = next(case["params"] for case in meta(folder)["cases"] if case["name"] == name)
    vectors = group(folder, name)
    x, side = vectors["x"], params["grid"]
    strategy = MustDrop(threshold=params["threshold"], window=params["window"][0], key_ratio=params["keep_rate"])
    merge_site, key_site = strategy.sites(24)
    merged = vectors["merged"][:, 1:]
    for row in range(x.shape[0]):  # one by one: the published code ties the images of a batch together
        selection = strategy.reduce(fresh_view(x[row : row + 1, 1:], (side, side), merge_site, 24))
        tokens, _ = apply_selection(x[row : row + 1, 1:], torch.ones(1, side * side), selection)
        if x.shape[0] == 1:
            torch.testing.assert_close(tokens, merged, atol=1e-5, rtol=1e-5)
    view = fresh_view(merged, (side, side), key_site, 24, _cls_attention=vectors["cls_attn"][..., 1:])
    marked = strategy.reduce(view)
    assert marked.keep.expand(x.shape[0], -1).tolist() == [list(range(merged.shape[1]))] * x.shape[0]
    for row, key_set in enumerate(vectors["key_set"]):
        assert marked.protect[row].nonzero().flatten().tolist() == key_set.sort().values.tolist()


def test_published_setting_is_the_default() -> None:
    assert VISION["mustdrop"]().spec() == {
        "name": "mustdrop",
        "positions": "renumber",
        "merge_layer": 0,
        "window": 3,
        "threshold": 0.8,
        "key_ratio": 0.08,
        "key_layer": -1,
        "order": "published",
    }


@pytest.mark.parametrize(
    ("fields", "depth", "layers"),
    [
        ({}, 24, (0, 23)),
        ({"merge_layer": 1, "key_layer": 3}, 6, (1, 3)),
        ({"merge_layer": 0.25, "key_layer": -2}, 8, (2, 6)),
        ({"key_ratio": 0}, 24, (0,)),
        ({"merge_layer": 5, "key_layer": 0, "key_ratio": 0}, 6, (5,)),
    ],
)
def test_sites(fields: dict[str, Any], depth: int, layers: tuple[int, ...]) -> None:
    assert MustDrop(**fields).sites(depth) == tuple(Site.block(layer) for layer in layers)


@pytest.mark.parametrize(
    ("fields", "depth", "message"),
    [
        ({"merge_layer": 24}, 24, "vision.mustdrop.merge_layer=24 lies beyond"),
        ({"key_layer": -25}, 24, "vision.mustdrop.key_layer=-25 lies beyond"),
        ({"merge_layer": 3, "key_layer": 3}, 24, "give a key_layer after merge_layer"),
        ({"merge_layer": -1}, 24, "give a key_layer after merge_layer"),
        ({}, 1, "give a key_layer after merge_layer"),
    ],
)
def test_impossible_layers_are_refused(fields: dict[str, Any], depth: int, message: str) -> None:
    with pytest.raises(CompatibilityError, match=message):
        MustDrop(**fields).sites(depth)


@pytest.mark.parametrize("fields", [{"window": 1}, {"key_ratio": 1.1}, {"key_ratio": -0.1}, {"order": "score"},
                                    {"threshold": math.nan}, {"treshold": 0.8}])  # fmt: skip
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MustDrop(**fields)


@pytest.mark.parametrize("key_ratio", [0.08, 0.01, 0.5, 1.0])
def test_key_tokens_have_the_highest_attention_of_their_own_image(key_ratio: float) -> None:
    counts = [30, 7, 1]
    strategy = MustDrop(key_ratio=key_ratio)
    view = random_view(counts, (6, 6), site=Site.block(3), depth=4)
    protect = strategy.reduce(view).protect
    attention = view.cls_attention.mean(1)
    for row, count in enumerate(counts):
        expected = math.ceil(key_ratio * count)
        best = sorted(range(count), key=lambda i: -float(attention[row, i]))[:expected]
        assert protect[row].nonzero().flatten().tolist() == sorted(best)


@pytest.mark.parametrize(("key_ratio", "n"), [(0.08, 25), (0.08, 50), (0.08, 576), (0.07, 100), (0.14, 50), (0.28, 25)])
def test_the_number_of_key_tokens_is_the_published_ceil(key_ratio: float, n: int) -> None:
    """In double precision, as python's math.ceil sees it: 0.07 * 100 is a little more than 7 there."""
    view = fresh_view(torch.zeros(1, n, 2), (1, n), Site.block(3), 4, _cls_attention=torch.rand(1, 2, n))
    assert int(MustDrop(key_ratio=key_ratio).reduce(view).protect.sum()) == math.ceil(key_ratio * n)


def test_equal_attention_marks_the_first() -> None:
    view = fresh_view(torch.zeros(1, 25, 2), (5, 5), Site.block(3), 4, _cls_attention=torch.ones(1, 2, 25))
    assert MustDrop().reduce(view).protect.nonzero()[:, 1].tolist() == [0, 1]


def test_merging_leaves_images_of_a_batch_independent() -> None:
    view = random_view([36, 36, 36], (6, 6), site=Site.block(0), depth=4, seed=3)
    selection = MustDrop(window=2, threshold=0.7).reduce(view)
    counts = (selection.keep >= 0).sum(1).tolist()
    assert len(set(counts)) > 1
    assert selection.ragged


@pytest.mark.parametrize("order", ["published", "image"])
def test_order(order: str) -> None:
    tokens = torch.eye(16).view(1, 16, 16).clone()
    tokens[0, [8, 9, 12, 13]] = 1.0  # the third window of a 4 x 4 grid is alike, the others are orthogonal
    selection = MustDrop(window=2, order=order).reduce(fresh_view(tokens, (4, 4), Site.block(0), 4))
    rest = [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 14, 15]
    assert selection.keep.tolist() == [[13, *rest] if order == "published" else sorted([13, *rest])]


def test_marks_only_and_keeps_everything_at_the_key_site() -> None:
    selection = MustDrop().reduce(random_view([9, 9], (3, 3), site=Site.block(3), depth=4))
    assert isinstance(selection, Selection)
    assert selection.assign is None
    assert selection.protect.sum(1).tolist() == [1, 1]
