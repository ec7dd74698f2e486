"""What every prefill filter must do, run over the registry."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from tokcomp import PREFILL, Budget, PrefillFilter, PrefillView
from tokcomp.errors import CompatibilityError
from tokcomp.testing.prefill_views import alone, kept, random_view, tensor_fields

DEPTHS = (4, 8, 32)
SHAPES = [[1], [7], [30], [1, 1, 1], [9, 9, 9], [12, 1, 5], [31, 24, 30]]
OTHER_SETTINGS = {
    "fastv": [{"keep_tokens": 5}, {"keep_ratio": 0.13, "layer": 3}],
    "uniform": [{"keep_tokens": 5}, {"keep_ratio": 0.13, "layer": 3}],
    "dart": [
        {"rounding": "exact", "keep_tokens": 5},
        {"rounding": "exact", "keep_ratio": 0.9, "image_pivots": 2, "text_pivots": 0},
        {"keep_tokens": 12, "text_pivots": 3},
    ],
    "pyramiddrop": [{"layers": (0.5, -1), "keep_ratios": (0.4, 0.1)}],
    "sparsevlm": [
        {"scale": 1.5, "bias": 2},
        {"keep_tokens": (6, 3), "layers": (1, 0.5), "recycle": 0.9},
        {"keep_ratios": (0.5, 0.3, 0.1), "recycle": 0},
    ],
    "schedule": [
        {"steps": ["fastv", {"name": "sparsevlm", "layers": (0.75,), "keep_tokens": (3,)}], "positions": "keep"},
        {
            "steps": [{"name": "dart", "layer": 1}, {"name": "mustdrop", "layers": (0.5, 0.75)}],
            "respects_protected": True,
        },
    ],
    "random": [{"keep_tokens": 5}, {"keep_ratio": 0.13, "seed": 3}],
    "mustdrop": [
        {"global_threshold": 0.08, "individual_threshold": 0.2},
        {"global_threshold": 1.0, "individual_threshold": 1.0, "layers": (1, -1)},
    ],
}
STRATEGIES = [
    pytest.param(strategy, id=f"{name}-{number}")
    for name, cls in PREFILL.items()
    for number, strategy in enumerate([cls(), *(cls(**fields) for fields in OTHER_SETTINGS.get(name, []))])
]
strategies = pytest.mark.parametrize("strategy", STRATEGIES)
budgeted = pytest.mark.parametrize(
    "strategy",
    [
        one
        for one in STRATEGIES
        if "keep_ratio" in (fields := dict(one.values[0])) and fields.get("rounding") != "published"
    ],
)


def view_for(strategy: PrefillFilter, counts: list[int], **options: object) -> PrefillView:
    """What the filter sees where it acts first in a model of 8 layers."""
    layer = strategy.acts_after(8)[0]
    return random_view(counts, filter=strategy, layer=layer, depth=8, **options)


@strategies
def test_acts_after_layers_that_exist(strategy: PrefillFilter) -> None:
    for depth in DEPTHS:
        layers = strategy.acts_after(depth)
        assert list(layers) == sorted(set(layers))
        assert layers
        assert 0 <= layers[0] <= layers[-1] < depth


@strategies
@pytest.mark.parametrize("counts", SHAPES, ids=str)
def test_selects_tokens_that_are_there(strategy: PrefillFilter, counts: list[int]) -> None:
    view = view_for(strategy, counts, protected=0.2)
    selection = strategy.filter(view)
    selection.check(view.n_tokens, batch_size=len(counts), valid=view.valid)


@strategies
@pytest.mark.parametrize("counts", SHAPES, ids=str)
def test_protected_tokens_stay(strategy: PrefillFilter, counts: list[int]) -> None:
    view = view_for(strategy, counts, protected=0.4)
    selection = strategy.filter(view)
    assert strategy.of_layer(view.layer, view.depth).respects_protected
    for row in range(len(counts)):
        marked = set(alone(view, row).protected[0].nonzero()[:, 0].tolist())
        assert marked <= set(kept(selection, view, row))
    everything = view_for(strategy, counts, protected=1.1)
    assert torch.equal((strategy.filter(everything).keep >= 0).sum(dim=1), everything.counts)


@budgeted
def test_a_declared_budget_is_met(strategy: PrefillFilter) -> None:
    budget = Budget(keep_ratio=strategy.keep_ratio, keep_tokens=strategy.keep_tokens)
    for counts in SHAPES:
        selection = strategy.filter(view_for(strategy, counts))
        assert (selection.keep >= 0).sum(dim=1).tolist() == [budget.resolve(n) for n in counts]


@strategies
@pytest.mark.parametrize("counts", SHAPES, ids=str)
def test_a_batch_gives_what_its_samples_give(strategy: PrefillFilter, counts: list[int]) -> None:
    view = view_for(strategy, counts, protected=0.2)
    selection = strategy.filter(view)
    for row in range(len(counts)):
        one = alone(view, row)
        assert kept(selection, view, row) == kept(strategy.filter(one), one, 0)


@strategies
def test_the_same_view_gives_the_same_selection(strategy: PrefillFilter) -> None:
    view = view_for(strategy, [12, 30, 5], protected=0.2)
    before = {name: value.clone() for name, value in tensor_fields(view).items()}
    first = strategy.filter(view)
    torch.manual_seed(123)
    assert torch.equal(strategy.filter(view).keep, first.keep)
    assert torch.equal(type(strategy)(**strategy.model_dump()).filter(view).keep, first.keep)
    for name, value in tensor_fields(view).items():
        assert torch.equal(value, before[name]), name


@strategies
def test_half_precision_works(strategy: PrefillFilter) -> None:
    view = view_for(strategy, [12, 30, 5], dtype=torch.bfloat16)
    strategy.filter(view).check(view.n_tokens, batch_size=3, valid=view.valid)


@strategies
def test_fields_are_frozen_documented_and_checked(strategy: PrefillFilter) -> None:
    assert strategy.spec()["name"] == strategy.name
    assert all(field.description for field in type(strategy).model_fields.values())
    assert type(strategy).__doc__
    with pytest.raises(ValidationError, match="no_such_field"):
        type(strategy)(no_such_field=1)
    with pytest.raises(ValidationError, match="frozen"):
        strategy.respects_protected = False


def test_a_model_that_is_too_shallow_is_refused() -> None:
    with pytest.raises(CompatibilityError, match="beyond this model's 2 layers"):
        PREFILL["fastv"]().acts_after(2)
