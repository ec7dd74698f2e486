"""KeyDiff, against a loop over the rule and against golden vectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.cache.views import alone, kept, prompt_view, random_view
from tests.golden_cases import cases, group, meta
from tokcomp.cache.keydiff import KeyDiff

GOLDEN = cases("keydiff", having="kept_idx")


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), GOLDEN, ids=lambda value: getattr(value, "name", value))
def test_golden(folder: Path, case: str) -> None:
    golden, params = group(folder, case), meta(folder)["cases"][case]["params"]
    block = next((params[name] for name in ("block_size", "block", "b") if name in params), None)
    policy = KeyDiff(keep_tokens=golden["kept_idx"].shape[-1], block=block)
    view = prompt_view(policy, golden["k"], golden.get("v", golden["k"]))
    if block is None:
        torch.testing.assert_close(policy.score(view), golden["scores"], atol=1e-4, rtol=0)
    assert torch.equal(policy.after_prefill(view).keep, golden["kept_idx"])


def best(keys: Tensor, pool: list[int], n: int) -> list[int]:
    """The n entries of the pool whose keys are least like the mean of its normalised keys (two keys always tie)."""
    unit = {i: keys[i] / keys[i].norm() for i in pool}
    anchor = sum(unit.values()) / len(pool)
    cosine = {i: float(unit[i] @ anchor / anchor.norm()) for i in pool}
    return sorted(sorted(pool, key=lambda i: (cosine[i], i))[:n])


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(3, 24), min_size=1, max_size=3), seed=st.integers(0, 2**31), n=st.integers(2, 20),
       block=st.sampled_from([None, 1, 3, 8]))  # fmt: skip
def test_keeps_keys_unlike_the_mean(counts: list[int], seed: int, n: int, block: int | None) -> None:
    policy = KeyDiff(keep_tokens=n, block=block, respects_protected=False)
    view = random_view(counts, policy=policy, seed=seed)
    selection = policy.after_prefill(view)
    for row, count in enumerate(counts):
        one = alone(view, row)
        for head, entries in enumerate(kept(selection, view, row)):
            keys, room = one.keys[0, head].double(), min(n, count)
            if block is None:
                chosen = best(keys, list(range(count)), room)
            else:
                chosen = list(range(room))
                for start in range(room, count, block):
                    chosen = best(keys, chosen + list(range(start, min(start + block, count))), room)
            assert entries == one.index[0, head, chosen].tolist()


def test_dropped_keys_leave_the_anchor() -> None:
    # Read at once, y is the odd direction and both of its keys stay; block by block one of them meets the other and goes.
    keys = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [0.0, 1.0], [0.1, 1.0], [1.0, 0.05]]).view(1, 1, 6, 2)
    at_once, blocks = KeyDiff(keep_tokens=2), KeyDiff(keep_tokens=2, block=1)
    assert at_once.after_prefill(prompt_view(at_once, keys, keys)).keep.tolist() == [[[3, 4]]]
    assert blocks.after_prefill(prompt_view(blocks, keys, keys)).keep.tolist() == [[[2, 3]]]
