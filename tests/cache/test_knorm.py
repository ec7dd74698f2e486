"""Knorm, against a loop over the rule and against golden vectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cache.views import alone, kept, prompt_view, random_view
from tests.golden_cases import cases, group
from tokcomp.cache.knorm import Knorm
from tokcomp.errors import CompatibilityError

GOLDEN = cases("knorm", having="kept_idx")


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), GOLDEN, ids=lambda value: getattr(value, "name", value))
def test_golden(folder: Path, case: str) -> None:
    golden = group(folder, case)
    policy = Knorm(keep_tokens=golden["kept_idx"].shape[-1], sinks=0, recent_tokens=0)
    view = prompt_view(policy, golden["k"], golden["v"])
    torch.testing.assert_close(policy.score(view), golden["scores"], atol=1e-4, rtol=0)
    assert torch.equal(policy.after_prefill(view).keep, golden["kept_idx"])


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 24), min_size=1, max_size=3), seed=st.integers(0, 2**31), n=st.integers(1, 20),
       sinks=st.integers(0, 5), recent=st.integers(0, 5))  # fmt: skip
def test_keeps_small_keys(counts: list[int], seed: int, n: int, sinks: int, recent: int) -> None:
    policy = Knorm(keep_tokens=n, sinks=sinks, recent_tokens=recent, respects_protected=False)
    view = random_view(counts, policy=policy, seed=seed)
    selection = policy.after_prefill(view)
    for row, count in enumerate(counts):
        one = alone(view, row)
        room = min(n, count)
        last = min(recent, room)
        must = set(range(count - last, count)) | set(range(min(sinks, room - last)))
        for head, entries in enumerate(kept(selection, view, row)):
            norms = [sum(x * x for x in key) ** 0.5 for key in one.keys[0, head].double().tolist()]
            others = sorted((i for i in range(count) if i not in must), key=lambda i: norms[i])
            chosen = sorted(must | set(others[: max(room - len(must), 0)]))
            assert entries == one.index[0, head, chosen].tolist()


def test_may_leave_the_first_layers_alone() -> None:
    assert Knorm(first_layer=2).acts_on(8) == range(2, 8)
    assert Knorm(first_layer=2).of_layer(1, 8) is None
    with pytest.raises(CompatibilityError, match=r"cache\.knorm\.first_layer=8"):
        Knorm(first_layer=8).acts_on(8)


def test_padding_has_no_small_norm() -> None:
    policy = Knorm(keep_tokens=2, sinks=0, recent_tokens=0)
    view = random_view([3, 6], policy=policy)
    view.keys[0].masked_fill_(~view.valid[0][..., None], 0.0)
    keep = policy.after_prefill(view).keep
    assert bool(view.valid.gather(2, keep).all())
    assert torch.equal(keep, policy.after_prefill(view).keep)
