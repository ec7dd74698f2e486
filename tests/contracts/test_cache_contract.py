"""What cache policies keep to beyond the contract kit's rules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.contracts.settings import of_stage
from tokcomp import CachePolicy, CacheView, Selection, Signal
from tokcomp.testing.cache_views import kept, random_view

POLICIES: list[CachePolicy] = of_stage("cache")


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


def those(rule: Callable[[CachePolicy], bool]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("policy", [policy for policy in POLICIES if rule(policy)], ids=repr)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("counts", [[7], [12, 1, 5], [41, 36, 50]], ids=str)
def test_entries_stand_in_their_order(policy: CachePolicy, counts: list[int]) -> None:
    view = view_for(policy, counts, protected=0.2)
    assert all(selection is None or selection.ascending for selection in decisions(policy, view))


@those(keeps_the_newest)
def test_the_newest_entry_stays_in_decoding(policy: CachePolicy) -> None:
    view = view_for(policy, [12, 30, 5])
    selection = decisions(policy, view)[1]
    for row in range(3):
        newest = view.index[row].amax(dim=-1).tolist()
        assert [entries[-1] for entries in kept(selection, view, row)] == newest


@those(tells_heads_apart)
def test_heads_with_entries_of_their_own(policy: CachePolicy) -> None:
    view = view_for(policy, [41, 30, 12], per_head=True, protected=0.1)
    for selection in decisions(policy, view):
        if selection is not None:
            selection.check(view.n_entries, batch_size=3, valid=view.valid)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_half_precision_acts_where_single_precision_does(policy: CachePolicy) -> None:
    view, exact = (view_for(policy, [12, 40, 5], dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    for half, full in zip(decisions(policy, view), decisions(policy, exact), strict=True):
        assert (half is None) == (full is None)
