"""DART, against a loop over the paper's rule and against golden vectors."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from tests.golden_cases import group, listed_cases
from tokcomp import PREFILL, PrefillView
from tokcomp.errors import CompatibilityError
from tokcomp.prefill.dart import Dart
from tokcomp.testing.prefill_views import alone, kept, random_view


def survivors(view: PrefillView, pivots: tuple[int, int], shares: list[int]) -> list[int]:
    """The rule for one sample, pivot by pivot; ``shares``: how many each takes."""
    image = strongest(view.keys[0], pivots[0])
    text = strongest(view.text_keys[0], pivots[1])
    states, told = view.final_norm(view.tokens[0].double()), view.final_norm(view.text[0].double())
    taken, pool = set(image), [j for j in range(states.shape[0]) if j not in image]
    for pivot, m in zip([states[i] for i in image] + [told[i] for i in text], shares, strict=True):
        cosine = {j: float(torch.cosine_similarity(states[j], pivot, dim=0)) for j in pool}
        least = sorted(pool, key=lambda j: (cosine[j], j))[:m]
        taken |= set(least)
        pool = [j for j in pool if j not in taken]
    return sorted(taken)


def strongest(keys: Tensor, k: int) -> list[int]:
    norm = keys.double().abs().sum(dim=(0, 2)).tolist()
    return sorted(sorted(range(len(norm)), key=lambda j: (-norm[j], j))[:k])


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
    budget=st.sampled_from([{"keep_ratio": 0.5}, {"keep_ratio": 1.0}, {"keep_tokens": 3}, {"keep_tokens": 14}]),
    pivots=st.sampled_from([(4, 4), (2, 3), (1, 0)]),
    exact=st.booleans(),
)
def test_each_pivot_takes_what_resembles_it_least(
    counts: list[int], seed: int, budget: dict[str, float], pivots: tuple[int, int], exact: bool
) -> None:
    strategy = Dart(**budget, image_pivots=pivots[0], text_pivots=pivots[1], rounding="exact" if exact else "published")
    view = random_view(counts, filter=strategy, seed=seed)
    selection = strategy.filter(view)
    selection.check(view.n_tokens, batch_size=len(counts), valid=view.valid)
    for row, n in enumerate(counts):
        one = alone(view, row)
        target = min(n, budget["keep_tokens"]) if "keep_tokens" in budget else max(1, round(n * budget["keep_ratio"]))
        own = min(n, pivots[0], target) if exact else min(n, pivots[0])
        number = own + min(pivots[1], one.text.shape[1])
        if exact:
            whole, more = divmod(target - own, number)
            shares = [whole + (i < more) for i in range(number)]
        elif "keep_tokens" in budget:
            shares = [min(budget["keep_tokens"], n - own) // number] * number
        else:
            shares = [math.trunc(n * budget["keep_ratio"]) // number] * number
        expected = survivors(one, (own, pivots[1]), shares)
        assert kept(selection, view, row) == expected
        if exact:
            assert len(expected) == target


def test_fields() -> None:
    assert Dart().acts_after(32) == (1,)
    assert PREFILL["dart"]().guided_by() == "prefill.dart.text_pivots=4"
    assert Dart(text_pivots=0).guided_by() is None
    with pytest.raises(ValidationError, match="layer=0"):
        Dart(layer=0)
    with pytest.raises(CompatibilityError, match="the layer is at least 1"):
        Dart(layer=0.1).acts_after(8)


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), listed_cases("dart"))
def test_the_published_rule(folder: Path, case: dict) -> None:
    golden, params = group(folder, case["name"]), case["params"]
    start, n, states, keys = params["image_start"], params["image_len"], golden["hidden_normed"], golden["keys"]
    vision, text = slice(start, start + n), slice(start + n, None)
    strategy = Dart(keep_ratio=1 - params["reduction_ratio"], image_pivots=params["pivot_image"],
                    text_pivots=params["pivot_text"])  # fmt: skip
    view = replace(random_view([n]), tokens=states[:, vision], _keys=keys[:, :, vision], _text=states[:, text],
                   _text_keys=keys[:, :, text], _text_valid=torch.ones(1, states[:, text].shape[1], dtype=torch.bool),
                   _final_norm=lambda states: states)  # fmt: skip
    keep = strategy.filter(view).keep[0].tolist()
    assert len(keep) == params["kept"]
    assert keep == golden["kept_canonical"].tolist()
    order = golden["pivot_order"].tolist()
    if order == sorted(order):  # where the hash table's order happens to be the ascending one
        assert keep == golden["kept"].tolist()
