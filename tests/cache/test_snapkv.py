"""SnapKV, against a loop over the published rule and against golden vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.cache.views import naive_attention, prompt_view
from tests.golden_cases import cases, group, meta
from tokcomp.cache.snapkv import SnapKV

GOLDEN = cases("snapkv", having="scores")


def published(params: dict[str, Any]) -> dict[str, Any]:
    """A golden case's fields in this package's words."""
    window = params.get("window") or params.get("window_size")
    pooling = "max" if params.get("pooling") == "maxpool" else "average"
    return {"window": window, "kernel": params["kernel_size"], "pooling": pooling,
            "heads": "own" if params.get("head_adaptive", True) else "shared"}  # fmt: skip


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), GOLDEN, ids=lambda value: getattr(value, "name", value))
def test_golden(folder: Path, case: str) -> None:
    golden, told = group(folder, case), meta(folder)["cases"][case]
    keys, values, query, n = golden["k"], golden["v"], golden["q"], golden["kept_idx"].shape[-1]
    policy = SnapKV(keep_tokens=n, **published(told["params"]))
    view = prompt_view(policy, keys, values, query)
    before = keys.shape[2] - policy.window
    scores = policy.score(view)[..., :before]
    if "EffiVLM" not in told["source"]:  # a mean over rows and group, where that code sums
        scores = scores / (policy.window * query.shape[1] // keys.shape[1])
    torch.testing.assert_close(scores, golden["scores"][..., :before], atol=1e-4, rtol=0)
    kept = policy.after_prefill(view).keep
    if "kept_scores" in golden:  # max pooling makes ties: which of the tied entries stay is not defined
        best = scores.gather(2, kept[..., : n - policy.window]).sort(dim=-1, descending=True).values
        torch.testing.assert_close(best, golden["kept_scores"].expand_as(best), atol=1e-4, rtol=0)
        return
    assert torch.equal(kept, golden["kept_idx"])
    if "k_out" in golden:
        order = golden["kept_idx_ref_order"].argsort(dim=-1)[..., None].expand(*kept.shape, keys.shape[-1])
        wide = kept[..., None].expand_as(order)
        assert torch.equal(keys.gather(2, wide), golden["k_out"].gather(2, order))
        assert torch.equal(values.gather(2, wide), golden["v_out"].gather(2, order))


def naive(keys: Tensor, query: Tensor, window: int, kernel: int, pooling: str, n: int) -> list[list[list[int]]]:
    """Entry by entry, as the paper has it."""
    attention, length = naive_attention(query, keys), keys.shape[2]
    rows = min(window, length)
    group, kept = query.shape[1] // keys.shape[1], []
    for sample in attention:
        kept.append([])
        for head in range(keys.shape[1]):
            received = (
                sample[head * group : (head + 1) * group, length - rows :].sum(dim=(0, 1)).tolist()[: length - rows]
            )
            scores = []
            for t in range(len(received)):
                near = [
                    received[i] if 0 <= i < len(received) else 0.0 for i in range(t - kernel // 2, t + kernel // 2 + 1)
                ]
                scores.append(sum(near) / kernel if pooling == "average" else max(near))
            room = min(rows, n - 1)
            recent = list(range(length - room, length))
            # Of the window only as much must stay as leaves room for one entry; the rest of it has the score 0.
            others = sorted(range(length - room), key=lambda i: (-scores[i] if i < len(scores) else 0.0, i))
            kept[-1].append(sorted(others[: n - room] + recent))
    return kept


@pytest.mark.parametrize(("window", "n"), [(4, 12), (7, 8), (9, 5), (50, 7), (1, 1)])
@pytest.mark.parametrize("pooling", ["average", "max"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_keeps_what_the_window_attends_to(window: int, n: int, pooling: str, kernel: int) -> None:
    generator = torch.Generator().manual_seed(window + n)
    query, keys = 2 * torch.randn(2, 4, 20, 8, generator=generator), torch.randn(2, 2, 20, 8, generator=generator)
    policy = SnapKV(keep_tokens=n, window=window, kernel=kernel, pooling=pooling)
    kept = policy.after_prefill(prompt_view(policy, keys, keys, query)).keep
    assert kept.tolist() == naive(keys, query, window, kernel, pooling, n)


def test_the_window_reaches_back_to_the_last_image() -> None:
    policy, counts = SnapKV(window=16), torch.tensor([100, 100, 7])
    assert policy.prefill_rows(counts, torch.tensor([5, 40, 7])).tolist() == [5, 16, 7]
    assert policy.prefill_rows(counts, torch.tensor([0, 1, 0])).tolist() == [1, 1, 1]


def test_heads_may_share_one_choice() -> None:
    generator = torch.Generator().manual_seed(0)
    query, keys = 2 * torch.randn(1, 4, 20, 8, generator=generator), torch.randn(1, 2, 20, 8, generator=generator)
    shared, own = (SnapKV(keep_tokens=6, window=3, heads=heads) for heads in ("shared", "own"))
    kept = shared.after_prefill(prompt_view(shared, keys, keys, query)).keep
    assert torch.equal(kept[:, 0], kept[:, 1])
    apart = own.after_prefill(prompt_view(own, keys, keys, query)).keep
    assert not torch.equal(apart[:, 0], apart[:, 1])


def test_refuses_an_even_kernel() -> None:
    with pytest.raises(ValidationError, match="give an odd one"):
        SnapKV(kernel=4)
