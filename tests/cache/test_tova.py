"""TOVA, against a loop over the published rule and against golden vectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cache.views import Layer, alone, kept, naive_attention, prompt_view, random_view
from tests.golden_cases import cases, group, meta
from tokcomp.cache.tova import TOVA

PREFILL = cases("tova", having="kept_idx")
DECODING = cases("tova", having="kept_after_step")


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), PREFILL, ids=lambda value: getattr(value, "name", value))
def test_golden_prefill(folder: Path, case: str) -> None:
    golden = group(folder, case)
    policy = TOVA(keep_tokens=golden["kept_idx"].shape[-1], current="stays")
    view = prompt_view(policy, golden["k"], golden["v"], golden["q"])
    mean = view.received.sum(dim=1) / golden["q"].shape[1]
    torch.testing.assert_close(mean[:, :-1], golden["scores"][:, 0, :-1], atol=1e-4, rtol=0)
    keep = policy.after_prefill(view).keep
    assert torch.equal(keep[:, None].expand_as(golden["kept_idx"]), golden["kept_idx"])


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), DECODING, ids=lambda value: getattr(value, "name", value))
def test_golden_decoding(folder: Path, case: str) -> None:
    golden, told = group(folder, case), meta(folder)["cases"][case]
    prompt, size = told["params"]["prompt_len"], told["params"]["target_size"]
    keys, values, query = golden["k"], golden["v"], golden["q"]
    layer = Layer(TOVA(keep_tokens=size, current="stays" if "kvpress" in told["source"] else "competes"),
                  keys.shape[0], keys.shape[1], keys.shape[3])  # fmt: skip
    layer.append(keys[:, :, :prompt], values[:, :, :prompt])
    layer.prompt = prompt
    for step, expected in enumerate(golden["kept_after_step"]):
        now = slice(prompt + step, prompt + step + 1)
        output = layer.attend(query[:, :, now], keys[:, :, now], values[:, :, now])
        torch.testing.assert_close(output, golden["attn_out"][step], atol=1e-4, rtol=0)
        assert torch.equal(layer.index, expected.view(len(expected), -1, size).expand_as(layer.index))


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 24), min_size=1, max_size=3), seed=st.integers(0, 2**31), n=st.integers(1, 12),
       current=st.sampled_from(["competes", "stays"]), keep_text=st.booleans())  # fmt: skip
def test_keeps_what_the_current_token_attends_to(
    counts: list[int], seed: int, n: int, current: str, keep_text: bool
) -> None:
    policy = TOVA(keep_tokens=n, current=current, keep_text=keep_text)
    view = random_view(counts, policy=policy, seed=seed, protected=0.15)
    for selection in (policy.after_prefill(view), policy.after_step(view)):
        for row, count in enumerate(counts):
            one = alone(view, row)
            scores = one.received[0].sum(dim=0).tolist()
            must = {i for i in range(count) if one.protected[0, 0, i] or (keep_text and not one.vision[0, 0, i])}
            must |= {count - 1} if current == "stays" else set()
            others = sorted((i for i in range(count) if i not in must), key=lambda i: (-scores[i], i))
            chosen = sorted(must | set(others[: max(n - len(must), 0)]))
            assert kept(selection, view, row) == [one.index[0, 0, chosen].tolist()] * 2


def test_looks_at_one_row() -> None:
    generator = torch.Generator().manual_seed(0)
    query, keys = 2 * torch.randn(1, 4, 9, 8, generator=generator), torch.randn(1, 2, 9, 8, generator=generator)
    policy = TOVA(keep_tokens=4)
    row = naive_attention(query, keys)[0, :, -1].mean(dim=0)
    expected = sorted(row.argsort(descending=True)[:4].tolist())
    assert policy.after_prefill(prompt_view(policy, keys, keys, query)).keep.tolist() == [expected]


def test_the_current_entry_may_leave_at_once() -> None:
    layer = Layer(TOVA(keep_tokens=3), 1, 1, 1)
    one = torch.ones(1, 1, 1, 1)
    layer.append(one.expand(-1, -1, 3, -1), one.expand(-1, -1, 3, -1))
    layer.prompt = 3
    layer.attend(one, -one, one)  # a key that its own query looks away from
    assert layer.index.tolist() == [[[0, 1, 2]]]
    layer.attend(one, one, one)  # equal scores: the earlier entries stay
    assert layer.index.tolist() == [[[0, 1, 2]]]
    assert layer.seen == 5
