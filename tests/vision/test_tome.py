"""ToMe as a strategy; the matching itself is tested in tests/ops/test_matching.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.golden_cases import folders, group, meta
from tokcomp import VISION, Site
from tokcomp.errors import CompatibilityError
from tokcomp.ops.merging import apply_selection
from tokcomp.testing.vision_views import random_view
from tokcomp.types import VisionView
from tokcomp.vision.tome import ToMe

UNITS = [(folder, case) for folder in folders("tome_units") for case in meta(folder).get("bsm", {})]


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), UNITS, ids=lambda value: getattr(value, "name", value))
def test_golden_step(folder: Path, case: str) -> None:
    """One step through the strategy: it hands keys, prefix and r on as they are."""
    params, vectors = meta(folder)["bsm"][case], group(folder, case)
    p = int(params["class_token"]) + int(params.get("distill_token", False))
    x, b, n = vectors["x"][:, p:], vectors["x"].shape[0], vectors["x"].shape[1] - p
    ones = torch.ones(b, n)
    view = VisionView(site=Site.mid(0), depth=2, tokens=x, valid=ones.bool(), sizes=ones, protected=~ones.bool(),
                      origin=torch.arange(n).expand(b, n), grid=(1, n), n_prefix=p,
                      _keys=vectors["metric"][:, p:])  # fmt: skip
    merged, sizes = apply_selection(x, ones, ToMe(r=params["r_requested"]).reduce(view))
    torch.testing.assert_close(merged, vectors["y"][:, p:], atol=1e-6, rtol=1e-5)
    assert torch.equal(sizes, vectors["size"][:, p:, 0])


@pytest.mark.parametrize(
    ("fields", "depth", "layers"),
    [
        ({}, 3, [0, 1, 2]),
        ({"r": 4}, 3, [0, 1, 2]),
        ({"r": [4, 0, 2]}, 5, [0, 2]),
        ({"r": 3, "inflect": -1}, 4, [0, 1, 2]),
        ({"r": 3, "inflect": 1}, 4, [1, 2, 3]),
        ({"r": 0}, 3, []),
        ({"r": 0.0}, 3, []),
        ({"r": []}, 3, []),
    ],
)
def test_acts_between_attention_and_mlp_where_something_merges(
    fields: dict[str, Any], depth: int, layers: list[int]
) -> None:
    assert ToMe(**fields).sites(depth) == tuple(Site.mid(layer) for layer in layers)


@pytest.mark.parametrize(
    ("fields", "layer", "merged"),
    [
        ({"r": 5}, 2, 5),
        ({"r": [4, 0, 2]}, 2, 2),
        ({"r": [4, 0, 2]}, 3, 0),
        ({"r": 3, "inflect": -1}, 0, 6),
        ({"r": 0.1}, 1, 4),  # of 36 patches, whatever is left of them
        ({"r": 0.001}, 1, 1),
        ({"r": 1000}, 0, 18),
        ({}, 0, 1),
    ],
)
def test_how_many_merge(fields: dict[str, Any], layer: int, merged: int) -> None:
    view = random_view([36, 36], (6, 6), site=Site.mid(layer), depth=4)
    assert ToMe(**fields).reduce(view).keep.shape[1] == 36 - merged


def test_default_leaves_208_tokens_to_llava() -> None:
    left = 576
    for layer in range(23):
        view = random_view([left], (24, 24), site=Site.mid(layer), depth=24)
        left = ToMe().reduce(view).keep.shape[1]
    assert left == 208


def test_the_prefix_shifts_the_split() -> None:
    """An even number of prefix tokens puts the first patch into A, an odd one into B, where it can only receive."""
    for n_prefix, kept in ((0, [1, 3]), (1, [0, 2]), (2, [1, 3])):
        view = random_view([4], (2, 2), site=Site.mid(0), n_prefix=n_prefix)
        assert ToMe(r=2).reduce(view).keep.tolist() == [kept]


def test_key_tokens_never_merge() -> None:
    view = random_view([36, 36], (6, 6), site=Site.mid(0), protected=True)
    selection = ToMe(r=100).reduce(view)
    _, sizes = apply_selection(view.tokens, torch.ones(2, 36), selection)
    slots = selection.assign[view.protected]
    rows = view.protected.nonzero()[:, 0]
    assert len(slots) > 0
    assert torch.equal(sizes[rows, slots], torch.ones(len(slots)))


def test_sizes_weigh_the_mean() -> None:
    view = random_view([4], (2, 2), site=Site.mid(0), n_prefix=0)
    keys = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]]])
    view = dataclasses.replace(view, _keys=keys, sizes=torch.tensor([[3.0, 1.0, 1.0, 1.0]]))
    merged, sizes = apply_selection(view.tokens, view.sizes, ToMe(r=1).reduce(view))
    assert sizes.tolist() == [[1.0, 4.0, 1.0]]
    torch.testing.assert_close(merged[0, 1], 0.75 * view.tokens[0, 0] + 0.25 * view.tokens[0, 1])


@pytest.mark.parametrize("weighs", [True, False])
def test_proportional_attention(weighs: bool) -> None:
    assert ToMe(proportional_attention=weighs).weighs_attention() is weighs
    assert ToMe().weighs_attention()


@pytest.mark.parametrize("fields", [{"r": -1}, {"r": 1.5}, {"r": [1, -2]}, {"r": [2, 1], "inflect": -1.0},
                                    {"inflect": 2.0}, {"r": "many"}])  # fmt: skip
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ToMe(**fields)


def test_a_list_longer_than_the_tower_is_refused() -> None:
    with pytest.raises(CompatibilityError, match=r"vision.tome.r has 3 entries, but there are 2 blocks"):
        ToMe(r=[1, 1, 1]).sites(2)


@pytest.mark.parametrize("r", [7, 0.05, [3, 2, 1]])
def test_spec_gives_the_strategy_back(r: Any) -> None:
    spec = ToMe(r=r).spec()
    assert spec["r"] == r
    assert VISION[str(spec.pop("name"))](**spec) == ToMe(r=r)
