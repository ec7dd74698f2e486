"""What vision strategies keep to beyond the contract kit's rules: what their selections make of the tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contracts.settings import of_stage
from tokcomp import VISION, Selection, VisionReducer, VisionView
from tokcomp.ops.merging import apply_selection
from tokcomp.testing.vision_views import decision, random_view

DEPTH = 4
BATCHES = [
    ((36, 36, 36), (6, 6)),
    ((36, 21, 9), (6, 6)),
    ((35, 35, 30), (5, 7)),
    ((144, 100, 3), (12, 12)),
    ((2, 1, 4), (2, 2)),
]
"""Tokens of each image, and the grid that they come from."""

every_case = pytest.mark.parametrize("strategy", of_stage("vision"), ids=repr)


def views(strategy: VisionReducer, counts: tuple[int, ...], grid: tuple[int, int], **more: Any) -> list[VisionView]:
    """One view for every site where the strategy acts."""
    return [random_view(counts, grid, reducer=strategy, site=site, depth=DEPTH, seed=number, **more)
            for number, site in enumerate(strategy.sites(DEPTH))]  # fmt: skip


def applied(view: VisionView, selection: Selection) -> tuple[Tensor, Tensor]:
    """The tokens that a selection leaves, and their sizes."""
    return apply_selection(view.tokens, view.sizes, selection, cls_token=view._cls_token)


@every_case
def test_merged_tokens_hold_nothing_of_the_padding(strategy: VisionReducer) -> None:
    for counts, grid in BATCHES:
        for view in views(strategy, counts, grid):
            selection = strategy.reduce(view)
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
@pytest.mark.parametrize("n_prefix", [0, 1, 5])
def test_one_token_survives_as_it_is(strategy: VisionReducer, n_prefix: int) -> None:
    for view in views(strategy, (1, 1), (1, 1), n_prefix=n_prefix):
        tokens, sizes = applied(view, strategy.reduce(view))
        assert torch.equal(tokens, view.tokens)
        assert torch.equal(sizes, view.sizes)


@every_case
def test_half_precision_stays_half(strategy: VisionReducer) -> None:
    for view in views(strategy, (36, 21, 9), (6, 6), dtype=torch.bfloat16):
        assert applied(view, strategy.reduce(view))[0].dtype == torch.bfloat16


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
