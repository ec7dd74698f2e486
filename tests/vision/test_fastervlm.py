"""FasterVLM against the published rule and a plain loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.golden_cases import folders, group, meta
from tokcomp.testing.vision_views import random_view
from tokcomp.vision.fastervlm import FasterVLM

CASES = [pytest.param(folder, case, id=f"{folder.name}-{case['name']}")
         for folder in folders("fastervlm") for case in meta(folder)["cases"]]  # fmt: skip


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), CASES)
def test_published_vectors(folder: Path, case: dict) -> None:
    vectors = group(folder, case["name"])
    attention = vectors["cls_attn"]
    b, _, n = attention.shape
    side = int(n**0.5)
    grid = (side, side) if side * side == n else (1, n)
    view = replace(random_view([n] * b, grid), _cls_attention=attention)
    selection = FasterVLM(keep_tokens=case["params"]["T"]).reduce(view)
    assert torch.equal(selection.keep, vectors["kept"])


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(1, 20), min_size=1, max_size=3), tokens=st.integers(1, 25))
def test_equals_the_plain_rule(counts: list[int], tokens: int) -> None:
    view = random_view(counts, (4, 5))
    selection = FasterVLM(keep_tokens=tokens).reduce(view)
    selection.check(view.n_tokens, batch_size=len(counts), valid=view.valid)
    for row, count in enumerate(counts):
        scores = [float(view.cls_attention[row, :, i].mean()) for i in range(count)]
        best = sorted(sorted(range(count), key=lambda i: (-scores[i], i))[: min(tokens, count)])
        assert [i for i in selection.keep[row].tolist() if i >= 0] == best
