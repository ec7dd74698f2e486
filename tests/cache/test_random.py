"""The random control of the cache stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from tests.cache.views import kept, random_view
from tests.golden_cases import folders, group, meta
from tokcomp.cache.random import Random
from tokcomp.selection import Selection


def test_depends_on_digest_seed_layer_and_head_only() -> None:
    view = random_view([40], policy=Random())
    keep = Random().after_prefill(view).keep
    assert torch.equal(Random().after_prefill(replace(view, keys=view.keys + 1)).keep, keep)
    assert not torch.equal(keep[:, 0], keep[:, 1])
    assert not torch.equal(Random(seed=1).after_prefill(view).keep, keep)
    assert not torch.equal(Random().after_prefill(replace(view, layer=view.layer + 1)).keep, keep)
    assert not torch.equal(Random().after_prefill(replace(view, _digest=view.digest + 1)).keep, keep)


def test_left_padding_does_not_move_the_choice() -> None:
    view = random_view([25], policy=Random())
    moved = replace(view, index=view.index + 7)
    assert torch.equal(Random().after_prefill(moved).keep, Random().after_prefill(view).keep)


def test_recent_entries_and_text_stay_inside_the_budget() -> None:
    policy = Random(keep_tokens=22, recent_tokens=6, keep_text=True)
    view = random_view([40, 33], policy=policy)
    selection = policy.after_prefill(view)
    for row in range(2):
        for head, entries in enumerate(kept(selection, view, row)):
            index, real = view.index[row, head], view.valid[row, head]
            text = index[real & ~view.vision[row, head]].tolist()
            assert set(text) | set(index[real][-6:].tolist()) <= set(entries)
            assert len(entries) == max(22, len(text))


def test_every_entry_has_the_same_chance() -> None:
    n, draws = 20, 2000
    base = random_view([n], policy=Random(), heads=1)
    parts = {
        name: getattr(base, name).expand(draws, *getattr(base, name).shape[1:])
        for name in ("keys", "values", "valid", "index", "vision", "protected", "prompt")
    }
    view = replace(base, **parts, _digest=torch.arange(draws))
    keep = Random(keep_tokens=5).after_prefill(view).keep
    share = torch.bincount(keep.flatten(), minlength=n) / draws
    assert float((share - 0.25).abs().max()) < 5 * (0.25 * 0.75 / draws) ** 0.5


def test_fields() -> None:
    assert not Random().acts_in_decoding
    assert Random(keep_tokens=3).keep_ratio is None
    with pytest.raises(ValidationError, match="not both"):
        Random(keep_ratio=0.5, keep_tokens=3)


CASES = [pytest.param(folder, case, id=case) for folder in folders("random_cache") for case in meta(folder)["cases"]]


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), CASES)
def test_shape_of_the_published_choices(folder: Path, case: str) -> None:
    """Other generators draw other numbers: from given scores the choice is the same, else its properties are."""
    golden, params = group(folder, case), meta(folder)["cases"][case]["params"]
    wanted, length = golden["kept_idx"], params["L"]
    n, window = wanted.shape[-1], params.get("window", 0)
    if "scores" in golden:
        assert Selection.top_k(golden["scores"], n).keep.tolist() == wanted.tolist()
    policy = Random(keep_tokens=n, recent_tokens=window, seed=params.get("torch_manual_seed", 0))
    view = random_view([length] * wanted.shape[0], policy=policy, heads=wanted.shape[1])
    view = replace(view, index=torch.arange(length).expand_as(view.index))
    for keep in (wanted, policy.after_prefill(view).keep):
        assert keep.shape == wanted.shape
        assert bool((keep[..., 1:] > keep[..., :-1]).all())
        assert bool((keep[..., n - window :] == torch.arange(length - window, length)).all())
        assert len({tuple(row) for row in keep.flatten(0, 1).tolist()}) == wanted.shape[0] * wanted.shape[1]
