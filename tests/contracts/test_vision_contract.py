"""What every registered vision strategy keeps to, whatever it does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tokcomp import VISION, Selection, VisionReducer, VisionView
from tokcomp.ops.merging import apply_selection
from tokcomp.testing.vision_views import alone, decision, random_view, tensor_fields

DEPTH = 4
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "mustdrop": [
        {"window": 2, "threshold": 0.6},
        {"window": 2, "threshold": 0.6, "order": "image"},
        {"threshold": -1.0, "key_ratio": 1.0},
        {"threshold": 2.0, "key_ratio": 0},
    ],
    "tome": [{"r": 3}, {"r": 100}, {"r": [5, 0, 2, 1]}, {"r": 0.1, "inflect": -1.0, "proportional_attention": False}],
    "random": [{"keep_tokens": 5}, {"keep_ratio": 0.9, "seed": 7}],
    "uniform": [{"keep_tokens": 5}, {"keep_ratio": 0.9}],
    "pool": [{"window": 3}],
    "visionzip": [{"dominant": 1, "contextual": 0}, {"keep_tokens": 9, "order": "image"}],
    "prumerge": [{"keep_tokens": 9, "neighbours": 3}],
    "prumerge_plus": [{"keep_ratio": 0.5}],
    "vispruner": [{"keep_tokens": 10, "important_ratio": 0.0}],
    "evit": [{"layers": [1], "keep_ratio": 0.3, "order": "published"}, {"fuse": False}],
    "pitome": [{"r": 0.4}],
    "sequence": [{"steps": ["fastervlm", "vispruner", {"name": "tome", "r": 3}, {"name": "evit", "layers": [1]}]}],
}
CASES = [(name, fields) for name in VISION for fields in [{}, *VARIANTS.get(name, [])]]
BATCHES = [
    ((36,), (6, 6)),
    ((36, 36, 36), (6, 6)),
    ((36, 21, 9), (6, 6)),
    ((35, 35, 30), (5, 7)),
    ((144, 100, 3), (12, 12)),
    ((2, 1, 4), (2, 2)),
]
"""Tokens of each image, and the grid that they come from."""

every_case = pytest.mark.parametrize(("name", "fields"), CASES, ids=lambda value: str(value))
every_batch = pytest.mark.parametrize(("counts", "grid"), BATCHES, ids=lambda value: "x".join(map(str, value)))


def views(strategy: VisionReducer, counts: tuple[int, ...], grid: tuple[int, int], **more: Any) -> list[VisionView]:
    """One view for every site where the strategy acts (somewhere it must, or the tests show nothing)."""
    sites = strategy.sites(DEPTH)
    assert sites
    return [random_view(counts, grid, site=site, depth=DEPTH, seed=number, **more) for number, site in enumerate(sites)]


def applied(view: VisionView, selection: Selection) -> tuple[Tensor, Tensor]:
    """The tokens that a selection leaves, and their sizes."""
    return apply_selection(view.tokens, view.sizes, selection, cls_token=view.cls_token)


@every_case
@every_batch
def test_returns_a_selection_that_leaves_every_image_a_token(
    name: str, fields: dict[str, Any], counts: tuple[int, ...], grid: tuple[int, int]
) -> None:
    strategy = VISION[name](**fields)
    for view in views(strategy, counts, grid):
        selection = strategy.reduce(view)
        selection.check(view.n_tokens, batch_size=view.batch_size)
        tokens, sizes = applied(view, selection)
        for row, count in enumerate(counts):
            keep, slots, marks = decision(selection, view, row)
            assert 1 <= len(keep) <= count
            assert slots is None or all(-1 <= slot < len(keep) for slot in slots)
            assert marks is None or len(marks) == len(keep)
            assert torch.isfinite(tokens[row, : len(keep)]).all()
            assert tokens[row, : len(keep)].abs().max() < 100, "padding got into the result"
            assert (sizes[row, : len(keep)] >= 1).all()


@every_case
@every_batch
@pytest.mark.parametrize("merged", [False, True], ids=["fresh", "merged"])
def test_an_image_does_not_depend_on_its_neighbours(
    name: str, fields: dict[str, Any], counts: tuple[int, ...], grid: tuple[int, int], merged: bool
) -> None:
    strategy = VISION[name](**fields)
    for view in views(strategy, counts, grid, merged=merged, protected=merged):
        together = strategy.reduce(view)
        tokens, sizes = applied(view, together)
        for row in range(view.batch_size):
            single = alone(view, row)
            selection = strategy.reduce(single)
            assert decision(selection, single, 0) == decision(together, view, row)
            own, own_sizes = applied(single, selection)
            torch.testing.assert_close(tokens[row : row + 1, : own.shape[1]], own, atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(sizes[row : row + 1, : own.shape[1]], own_sizes)


@every_case
def test_is_deterministic_and_leaves_its_input_alone(name: str, fields: dict[str, Any]) -> None:
    strategy = VISION[name](**fields)
    spec = strategy.spec()
    twin = VISION[str(spec.pop("name"))](**spec)
    assert twin == strategy
    for view in views(strategy, (36, 21, 9), (6, 6)):
        before = {field: value.clone() for field, value in tensor_fields(view).items()}
        first = strategy.reduce(view)
        torch.manual_seed(12345)
        second = twin.reduce(view)
        for field, value in tensor_fields(view).items():
            assert torch.equal(value, before[field]), f"view.{field} was modified"
        for row in range(view.batch_size):
            assert decision(first, view, row) == decision(second, view, row)


@every_case
@pytest.mark.parametrize("n_prefix", [0, 1, 5])
def test_one_token_survives(name: str, fields: dict[str, Any], n_prefix: int) -> None:
    strategy = VISION[name](**fields)
    for view in views(strategy, (1, 1), (1, 1), n_prefix=n_prefix):
        selection = strategy.reduce(view)
        selection.check(1, batch_size=2, valid=view.valid)
        tokens, sizes = applied(view, selection)
        assert torch.equal(tokens, view.tokens)
        assert torch.equal(sizes, view.sizes)


@every_case
def test_half_precision(name: str, fields: dict[str, Any]) -> None:
    strategy = VISION[name](**fields)
    for view in views(strategy, (36, 21, 9), (6, 6), dtype=torch.bfloat16):
        selection = strategy.reduce(view)
        selection.check(view.n_tokens, batch_size=view.batch_size)
        tokens, _ = applied(view, selection)
        assert tokens.dtype == torch.bfloat16


NOTHING_TO_DO: dict[str, list[dict[str, Any]]] = {
    "mustdrop": [{"threshold": 2.0}, {"threshold": 2.0, "order": "image"}, {"window": 7}],
    "pool": [{"window": 1}],
    "uniform": [{"keep_ratio": 1.0, "layout": "2d"}],
}
IDENTITIES = [(name, fields) for name, several in NOTHING_TO_DO.items() for fields in several] + [
    (name, fields)
    for name in VISION
    for field, fields in (("keep_ratio", {"keep_ratio": 1.0}), ("keep_tokens", {"keep_tokens": 10_000}))
    if field in VISION[name].model_fields
]


@pytest.mark.parametrize(("name", "fields"), IDENTITIES, ids=lambda value: str(value))
@pytest.mark.parametrize("counts", [(36,), (36, 36, 36)])
def test_identity_where_there_is_nothing_to_do(name: str, fields: dict[str, Any], counts: tuple[int, ...]) -> None:
    strategy = VISION[name](**fields)
    for view in views(strategy, counts, (6, 6)):
        tokens, sizes = applied(view, strategy.reduce(view))
        assert torch.equal(tokens, view.tokens)
        assert torch.equal(sizes, view.sizes)


@pytest.mark.parametrize("name", list(VISION))
def test_is_described(name: str) -> None:
    strategy = VISION[name]
    assert strategy.name == name
    assert (strategy.__doc__ or "").strip()
    assert all(field.description for field in strategy.model_fields.values())
    assert len(set(strategy().sites(24))) == len(strategy().sites(24))
