"""LOOK-M, against loops over the rules and against golden vectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.cache.views import alone, kept, merged, prompt_view, random_view
from tests.golden_cases import cases, group, meta
from tokcomp.cache.lookm import LookM

GOLDEN = cases("lookm", having="kept_idx")


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), GOLDEN, ids=lambda value: getattr(value, "name", value))
def test_golden(folder: Path, case: str) -> None:
    golden, params = group(folder, case), meta(folder)["cases"][case]["params"]
    n = golden["kept_idx"].shape[-1]
    policy = LookM(keep_tokens=n, recent_ratio=params["recent"] / n, merge="pivotal" if params["merge"] else "none")
    view = prompt_view(policy, golden["k"], golden["v"], golden["q"], vision=~golden["text_mask"])
    importance = view.received[0] / (params["H"] // params["Hkv"])
    torch.testing.assert_close(importance, golden["importance"], atol=1e-4, rtol=0)
    selection = policy.after_prefill(view)
    assert torch.equal(selection.keep[0], golden["kept_idx"])
    if params["merge"]:
        keys, values = merged(view, selection, keys_too=policy.merges_keys())
    else:
        wide = selection.keep[..., None].expand(-1, -1, -1, params["D"])
        keys, values = view.keys.gather(2, wide), view.values.gather(2, wide)
    torch.testing.assert_close(keys, golden["k_out_fp32"], atol=1e-4, rtol=0)
    torch.testing.assert_close(values, golden["v_out_fp32"], atol=1e-4, rtol=0)


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 24), min_size=1, max_size=3), seed=st.integers(0, 2**31), n=st.integers(1, 20),
       share=st.sampled_from([0.0, 0.1, 0.5]))  # fmt: skip
def test_keeps_recent_entries_then_text_then_vision(counts: list[int], seed: int, n: int, share: float) -> None:
    policy = LookM(keep_tokens=n, recent_ratio=share, merge="none", respects_protected=False)
    view = random_view(counts, policy=policy, seed=seed)
    selection = policy.after_prefill(view)
    for row, count in enumerate(counts):
        one = alone(view, row)
        room = min(n, count)
        recent = set(range(count - max(1, int(room * share)), count))
        for head, entries in enumerate(kept(selection, view, row)):
            score, vision = one.received[0, head].tolist(), one.vision[0, head].tolist()
            others = sorted((i for i in range(count) if i not in recent), key=lambda i: (vision[i], -score[i], i))
            assert entries == one.index[0, head, sorted(recent | set(others[: room - len(recent)]))].tolist()


def pivotal(content: Tensor, keys: Tensor, keep: list[int], rule: str) -> Tensor:
    """Entry by entry, as the paper has it."""
    unit = torch.nn.functional.normalize(keys, dim=-1)
    members: dict[int, list[int]] = {c: [] for c in keep}
    for p in range(len(keys)):
        if p not in members:
            members[max(keep, key=lambda c: float(unit[p] @ unit[c]))].append(p)
    rows = []
    for c, merged_ones in members.items():
        parts = [content[c]] + [(content[p] + content[c]) / 2 if rule == "pivotal" else content[p] for p in merged_ones]
        rows.append(sum(parts) / len(parts))
    return torch.stack(rows)


@pytest.mark.parametrize("rule", ["pivotal", "average"])
def test_merges_into_the_most_similar_key(rule: str) -> None:
    policy = LookM(keep_tokens=7, merge=rule, respects_protected=False)
    view = random_view([30, 21], policy=policy, seed=5)
    selection = policy.after_prefill(view)
    selection.check(view.n_entries, batch_size=2, valid=view.valid)
    keys, values = merged(view, selection, keys_too=True)
    for row in range(2):
        one, valid = alone(view, row), view.valid[row, 0]
        place = valid.long().cumsum(0) - 1
        for head in range(2):
            keep = place[selection.keep[row, head]].tolist()
            own = one.keys[0, head].double()
            expected = pivotal(own, own, keep, rule)
            torch.testing.assert_close(keys[row, head].double(), expected, atol=1e-5, rtol=0)
            expected = pivotal(one.values[0, head].double(), own, keep, rule)
            torch.testing.assert_close(values[row, head].double(), expected, atol=1e-5, rtol=0)
