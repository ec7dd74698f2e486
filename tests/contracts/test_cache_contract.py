"""What every cache policy must do, run over the registry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from tokcomp import CACHE, Budget, CachePolicy, CacheView, Selection, Signal
from tokcomp.scored import ScoredPolicy
from tokcomp.testing.cache_views import alone, kept, random_view, tensor_fields

SHAPES = [[1], [7], [40], [1, 1, 1], [9, 9, 9], [12, 1, 5], [41, 36, 50]]
OTHER_SETTINGS = {
    "h2o": [
        {"heavy_tokens": 6, "recent_tokens": 4},
        {"heavy_ratio": 0.3, "eviction": "mask"},
        {"heavy_tokens": 0, "recent_tokens": 1, "keep_text": True},
    ],
    "streaming_llm": [{"recent_tokens": 5}, {"keep_ratio": 0.6, "sinks": 0, "positions": "keep", "keep_text": True}],
    "random": [{"keep_tokens": 9, "recent_tokens": 3}, {"keep_ratio": 0.3, "keep_text": True}],
    "mustdrop": [{"first_layer": 0, "positions": "keep"}],
    "adakv": [
        {"base": {"name": "knorm", "keep_tokens": 7}, "alpha": 0.5},
        {"base": {"name": "pyramidkv", "keep_ratio": 0.4}, "allocation": "published"},
    ],
    "vlcache": [{"keep_ratio": 0.4, "window": "different"}, {"keep_ratio": 0.3, "heads": "shared", "keep_text": True}],
    "lookm": [{"keep_tokens": 9, "merge": "average"}, {"keep_ratio": 0.5, "recent_ratio": 0.4, "merge": "none"}],
    "merging": [
        {"base": {"name": "tova", "keep_tokens": 8}, "threshold": 0.2},
        {"base": {"name": "knorm", "keep_tokens": 6}, "merge_fraction": 0.5, "keep_text": True},
    ],
    "output_aware": [{"start": 1, "every": 1, "final_tokens": 4}, {"start": 1, "mode": "threshold", "threshold": 1.0}],
    "expected_attention": [{"keep_tokens": 7, "sinks": 1, "covariance": False, "value_norm": False, "future": 3}],
    "interval": [
        {"base": {"name": "knorm", "keep_tokens": 8}, "every": 1},
        {"base": {"name": "snapkv", "keep_tokens": 6, "window": 2}, "every": 1, "prefill": True},
    ],
    "by_layer": [{"ranges": [{"policy": "h2o"}, {"first_layer": 0.5, "policy": {"name": "tova", "current": "stays"}}]}],
    "snapkv": [{"keep_tokens": 9, "window": 3, "kernel": 3, "pooling": "max"}, {"heads": "shared", "keep_text": True}],
    "pyramidkv": [{"keep_ratio": 0.4, "window": 2, "beta": 4}, {"rounding": "original"}, {"rounding": "kvpress"}],
    "tova": [{"keep_tokens": 7}, {"current": "stays", "keep_text": True}],
    "knorm": [{"keep_tokens": 5, "sinks": 0, "recent_tokens": 0}],
    "keydiff": [{"keep_ratio": 0.4, "block": 4}],
}
POLICIES = [
    pytest.param(policy, id=f"{name}-{number}")
    for name, cls in CACHE.items()
    for number, policy in enumerate([cls(), *(cls(**fields) for fields in OTHER_SETTINGS.get(name, []))])
]


def view_for(policy: CachePolicy, counts: list[int], **options: object) -> CacheView:
    """What the policy sees of the last layer of 8."""
    return random_view(counts, policy=policy, layer=policy.acts_on(8)[-1], depth=8, generated=1, **options)


def decisions(policy: CachePolicy, view: CacheView) -> list[Selection | None]:
    """After the prefill, and after a step on the same cache."""
    if Signal.SURVEY in policy.signals():
        policy.survey(view)
    first = policy.after_prefill(view)
    return [first, policy.after_step(view)] if policy.decodes() else [first]


def tells_heads_apart(policy: CachePolicy) -> bool:
    inner = getattr(policy, "base", policy)  # a wrapper tells heads apart if what it wraps does
    selection = decisions(inner, view_for(inner, [60]))[0]
    return selection is not None and selection.keep.dim() == 3


def keeps_the_newest(policy: CachePolicy) -> bool:
    current = getattr(getattr(policy, "base", policy), "current", "stays")
    return policy.decodes() and not policy.hides() and current == "stays"


def states_a_share(policy: CachePolicy) -> bool:
    if Signal.SURVEY in policy.signals():
        return False  # a share of all layers together
    return getattr(policy, "keep_ratio", None) is not None or getattr(policy, "keep_tokens", None) is not None


def those(rule: Callable[[CachePolicy], bool]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("policy", [one for one in POLICIES if rule(one.values[0])])


policies = pytest.mark.parametrize("policy", POLICIES)


@policies
def test_acts_on_layers_that_exist(policy: CachePolicy) -> None:
    for depth in (4, 8, 32):
        layers = policy.acts_on(depth)
        assert len(layers) > 0
        assert 0 <= layers[0] <= layers[-1] < depth


@policies
@pytest.mark.parametrize("counts", SHAPES, ids=str)
def test_selects_entries_that_are_there(policy: CachePolicy, counts: list[int]) -> None:
    view = view_for(policy, counts, protected=0.2)
    for selection in decisions(policy, view):
        if selection is not None:
            per_head = selection.keep.dim() == 3
            valid = view.valid if per_head else view.valid[:, 0]
            selection.check(view.n_entries, batch_size=len(counts), valid=valid)
            assert selection.ascending


@policies
@pytest.mark.parametrize("counts", SHAPES, ids=str)
def test_exempt_entries_stay(policy: CachePolicy, counts: list[int]) -> None:
    view = view_for(policy, counts, protected=0.4)
    exempt = policy.exempt(view)
    if exempt is None:
        exempt = torch.zeros_like(view.valid)
    for selection in decisions(policy, view):
        for row in range(len(counts)):
            for head, entries in enumerate(kept(selection, view, row)):
                must = view.index[row, head, exempt[row, head] & view.valid[row, head]]
                assert set(must.tolist()) <= set(entries)


@those(keeps_the_newest)
def test_the_newest_entry_stays_in_decoding(policy: CachePolicy) -> None:
    view = view_for(policy, [12, 30, 5])
    selection = decisions(policy, view)[1]
    for row in range(3):
        newest = view.index[row].amax(dim=-1).tolist()
        assert [entries[-1] for entries in kept(selection, view, row)] == newest


@those(states_a_share)
def test_a_declared_share_is_met(policy: CachePolicy) -> None:
    counts = [40, 31, 64]
    view = view_for(policy, counts)
    given = {name: getattr(policy, name, None) for name in ("keep_ratio", "keep_tokens")}
    selection, exempt = policy.after_prefill(view), policy.exempt(view) & view.valid
    for row, n in enumerate(counts):
        for head, entries in enumerate(kept(selection, view, row)):
            own = isinstance(policy, ScoredPolicy)
            share = int(policy.entries(view)[row, head]) if own else Budget(**given).resolve(n)
            assert share <= len(entries) <= share + int(exempt[row, head].sum())


@policies
@pytest.mark.parametrize("counts", SHAPES, ids=str)
def test_a_batch_gives_what_its_samples_give(policy: CachePolicy, counts: list[int]) -> None:
    view = view_for(policy, counts, protected=0.2)
    together = decisions(policy, view)
    for row in range(len(counts)):
        one = alone(view, row)
        apart = decisions(policy, one)
        for batched, single in zip(together, apart, strict=True):
            assert kept(batched, view, row) == kept(single, one, 0)


@those(tells_heads_apart)
def test_heads_with_entries_of_their_own(policy: CachePolicy) -> None:
    view = view_for(policy, [41, 30, 12], per_head=True, protected=0.1)
    for selection in decisions(policy, view):
        if selection is not None:
            selection.check(view.n_entries, batch_size=3, valid=view.valid)


@policies
def test_the_same_view_gives_the_same_selection(policy: CachePolicy) -> None:
    view = view_for(policy, [12, 40, 5], protected=0.2)
    before = {name: value.clone() for name, value in tensor_fields(view).items()}
    first = decisions(policy, view)
    torch.manual_seed(123)
    for again in (policy, type(policy)(**policy.model_dump())):
        second = decisions(again, replace(view, memory={}))
        assert [kept(one, view, 1) for one in first] == [kept(one, view, 1) for one in second]
    for name, value in tensor_fields(view).items():
        assert torch.equal(value, before[name]), name


@policies
def test_half_precision_works(policy: CachePolicy) -> None:
    view, exact = (view_for(policy, [12, 40, 5], dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    for half, full in zip(decisions(policy, view), decisions(policy, exact), strict=True):
        if half is not None:
            half.check(view.n_entries, batch_size=3)
        assert (half is None) == (full is None)


@policies
def test_memory_holds_a_number_per_entry(policy: CachePolicy) -> None:
    view = view_for(policy, [12, 40, 5])
    decisions(policy, view)
    for name, value in view.memory.items():
        assert value.shape == view.valid.shape, name


@policies
def test_fields_are_frozen_documented_and_checked(policy: CachePolicy) -> None:
    assert policy.spec()["name"] == policy.name
    assert all(field.description for field in type(policy).model_fields.values())
    assert type(policy).__doc__
    with pytest.raises(ValidationError, match="no_such_field"):
        type(policy)(no_such_field=1)
    with pytest.raises(ValidationError, match="frozen"):
        policy.respects_protected = False
