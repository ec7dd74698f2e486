"""VisPruner against the published vectors and a plain loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.golden_cases import folders, group, meta
from tokcomp.testing.vision_views import random_view
from tokcomp.vision.vispruner import VisPruner

CASES = [pytest.param(folder, case, id=f"{folder.name}-{case['name']}")
         for folder in folders("vispruner") for case in meta(folder)["cases"]]  # fmt: skip


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), CASES)
def test_published_vectors(folder: Path, case: dict[str, Any]) -> None:
    vectors, params = group(folder, case["name"]), case["params"]
    b, n, _ = vectors["features"].shape
    view = replace(random_view([n] * b, (1, n)), tokens=vectors["features"], _cls_attention=vectors["cls_attn"])
    selection = VisPruner(keep_tokens=params["T"], important_ratio=params["important_ratio"]).reduce(view)
    assert torch.equal(selection.keep, vectors["kept"])


def plain(scores: list[float], features: Tensor, tokens: int, ratio: float) -> list[int]:
    """The rule for one image, token by token."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    important = int(tokens * ratio)
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    rest, wanted = order[important:], tokens - important
    while wanted and len(rest) > wanted:
        evens, odds = rest[::2], rest[1::2]
        like = {e: max((float(unit[e] @ unit[f]) for f in odds), default=-2.0) for e in evens}
        evens.sort(key=lambda e: -like[e])  # stable
        rest = evens[min(8, len(rest) - wanted) :] + odds
    return sorted(order[:important] + (rest if wanted else []))


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(1, 42), min_size=1, max_size=3), tokens=st.integers(1, 45), seed=st.integers(0, 99),
       ratio=st.sampled_from([0.0, 0.3, 0.5, 0.75, 1.0]))  # fmt: skip
def test_equals_the_plain_rule(counts: list[int], tokens: int, ratio: float, seed: int) -> None:
    view = random_view(counts, (6, 7), seed=seed)
    selection = VisPruner(keep_tokens=tokens, important_ratio=ratio).reduce(view)
    selection.check(view.n_tokens, batch_size=len(counts), valid=view.valid)
    for row, count in enumerate(counts):
        scores = [float(view.cls_attention[row, :, i].mean()) for i in range(count)]
        expected = plain(scores, view.tokens[row, :count], min(tokens, count), ratio)
        assert [i for i in selection.keep[row].tolist() if i >= 0] == expected
