"""VL-Cache, against golden vectors, layer by layer as the runner asks it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.cache.views import Rows, alone, kept, naive_attention, prompt_view, random_view
from tests.golden_cases import cases, group, meta
from tokcomp import CacheView
from tokcomp.cache.vlcache import VLCache, layer_shares

GOLDEN = cases("vlcache", having="sparsity")


def surveyed(policy: VLCache, views: list[CacheView]) -> tuple[list[CacheView], Tensor]:
    """The views as they are when all layers have been surveyed, and what was found ``[b, layers]``."""
    found = torch.stack([policy.survey(view) for view in views], dim=1)
    return [replace(view, _surveyed=found, _attention_rows=None) for view in views], found


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), GOLDEN, ids=lambda value: getattr(value, "name", value))
def test_golden(folder: Path, case: str) -> None:
    golden, params = group(folder, case), meta(folder)["cases"][case]["params"]
    different, adaptive = params["different_window_per_layer"], params["head_adaptive"]
    policy = VLCache(keep_ratio=params["alpha"], window="different" if different else "same",
                     heads="own" if adaptive else "shared")  # fmt: skip
    layers = range(params["layers"])
    views = [
        prompt_view(policy, golden["k"][layer], golden["v"][layer], golden["q"][layer], layer=layer, depth=len(layers),
                    after=params["post_vision_size"])
        for layer in layers
    ]  # fmt: skip
    views, found = surveyed(policy, views)
    torch.testing.assert_close(found.mean(dim=0).float(), golden["sparsity"], atol=2e-3, rtol=0)
    # Published code averages sparsity over the batch and sums shared importance over it; ours is per sample.
    mean = found.mean(dim=0, keepdim=True).expand_as(found)
    share = 1 if different else 0.9
    shares = layer_shares(mean, params["alpha"] * share, floor=0.01 * share)
    torch.testing.assert_close(shares[0].float(), golden["budget_fraction"], atol=1e-4, rtol=0)
    for layer in layers:
        grouped = golden["importance"][layer].unflatten(1, (params["Hkv"], -1)).sum(dim=2)
        torch.testing.assert_close(views[layer].memory["importance"], grouped, atol=1e-4, rtol=1e-4)
        expected = golden[f"kept_idx_layer{layer}"]
        if params["B"] > 1:
            whole = views[layer].memory["importance"].sum(dim=0, keepdim=True).expand_as(grouped)
            views[layer].memory["importance"] = whole
        keep = policy.after_prefill(replace(views[layer], _surveyed=mean)).keep
        assert torch.equal(keep.expand_as(expected) if adaptive or params["B"] > 1 else keep, expected)


def test_sparsity_counts_what_is_alive_entry_by_entry() -> None:
    generator = torch.Generator().manual_seed(0)
    query, keys = 3 * torch.randn(1, 4, 6, 8, generator=generator), torch.randn(1, 2, 20, 8, generator=generator)
    policy = VLCache()
    view = prompt_view(policy, keys, keys, query, after=6)
    rows = naive_attention(query, keys)[0]
    shares = []
    for head in rows:
        dead = cells = 0
        for i, row in enumerate(head):
            seen = row[: 20 - 6 + i + 1]
            cells += len(seen)
            dead += sum(float(weight) < 0.01 * float(seen.max()) for weight in seen)
        shares.append(dead / cells)
    torch.testing.assert_close(float(policy.survey(view)), sum(shares) / 4, atol=1e-6, rtol=0)


def test_padding_changes_nothing() -> None:
    policy = VLCache(keep_ratio=0.4)
    view = random_view([30, 18], policy=policy)
    full = replace(view, after=torch.tensor([5, 4]))
    found = policy.survey(full)
    for row in range(2):
        one = alone(full, row)
        if row == 1:  # its first row is padding of the batch
            one = replace(
                one, _attention_rows=Rows(one._attention_rows.attention[:, :, 1:], one._attention_rows.real[:, 1:])
            )
        torch.testing.assert_close(policy.survey(one), found[row : row + 1])
        torch.testing.assert_close(one.memory["importance"][0], full.memory["importance"][row][:, view.valid[row, 0]])
        assert kept(policy.after_prefill(full), full, row) == kept(policy.after_prefill(one), one, 0)


def test_dense_layers_get_more_and_nothing_less_than_a_hundredth() -> None:
    shares = layer_shares(torch.tensor([[0.2, 0.6, 0.9999, torch.nan]]), 0.3, floor=0.01)
    torch.testing.assert_close(shares[0, :3], torch.tensor([0.8 / 1.2001 * 0.9, 0.4 / 1.2001 * 0.9, 0.01]))


def test_is_guided_by_the_text_behind_the_image() -> None:
    assert VLCache().guided_by() == "cache=vlcache"
    assert VLCache().prefill_rows(torch.tensor([90]), torch.tensor([7])).tolist() == [7]
