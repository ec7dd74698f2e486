"""HiRED against the published vectors and a plain loop."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.golden_cases import folders, group, meta
from tests.models.families import families
from tokcomp import Pipeline, Selection, VisionView
from tokcomp.testing.vision_views import random_view
from tokcomp.vision.hired import HiRED

CASES = [pytest.param(folder, case, id=f"{folder.name}-{case['name']}")
         for folder in folders("hired") for case in meta(folder)["cases"]]  # fmt: skip


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), CASES)
def test_published_vectors(folder: Path, case: dict[str, Any]) -> None:
    vectors, params = group(folder, case["name"]), case["params"]
    last = vectors["last_cls_attn"][..., 1:]
    rows, _, n = last.shape
    first = vectors["first_cls_attn"][..., 1:] if "first_cls_attn" in vectors else last
    view = replace(random_view([n] * rows, (1, n)), _cls_attention=last, _elsewhere={0: {"_cls_attention": first}},
                   owners=(0,) * rows)  # fmt: skip
    strategy = HiRED(keep_ratio=params["token_budget_rate"], alpha=params.get("alpha", 0.5))
    selection = strategy.reduce(view)
    mask = torch.zeros(rows, n + 1, dtype=torch.bool).scatter(1, selection.keep.where(selection.keep >= 0, n), True)
    assert torch.equal(mask[:, :n], vectors["mask"])


def best(view: VisionView, row: int, budget: int) -> list[int]:
    count = int(view.counts[row])
    scores = view.cls_attention[row].sum(0).tolist()
    return sorted(sorted(range(count), key=lambda i: (-scores[i], i))[:budget])


def plain(view: VisionView, rows: list[int], rate: float, alpha: float) -> list[list[int]]:
    """The rule for one image made of ``rows``."""
    n, tiles = view.n_tokens, len(rows) - 1
    total = int(len(rows) * n * rate)
    if total >= len(rows) * n:
        return [list(range(n))] * len(rows)
    if not tiles:
        return [best(view, rows[0], max(1, total))]
    full = min(int(total * alpha), n)
    rest = min(total - full, tiles * n)
    early = view.at(0).cls_attention[rows[0]].sum(0).tolist()
    salient = sorted(range(n), key=lambda i: (-early[i], i))[: int(n * (1 - alpha))]
    ends = [p * n // tiles for p in range(tiles + 1)]
    inside = torch.tensor([sum(a <= i < b for i in salient) for a, b in pairwise(ends)], dtype=torch.float32)
    shares = (inside / inside.sum().clamp(min=1) * rest).long().tolist()
    budgets = [full, *(min(share, n) for share in shares)]
    return [best(view, row, max(1, budget)) for row, budget in zip(rows, budgets, strict=True)]


@settings(max_examples=25, deadline=None)
@given(images=st.lists(st.integers(1, 5), min_size=1, max_size=3), rate=st.sampled_from([0.05, 0.2, 0.4, 0.9, 1.0]),
       alpha=st.sampled_from([0.2, 0.5, 0.8]), seed=st.integers(0, 99))  # fmt: skip
def test_equals_the_plain_rule(images: list[int], rate: float, alpha: float, seed: int) -> None:
    owners = tuple(number for number, rows in enumerate(images) for _ in range(rows))
    view = replace(random_view([30] * len(owners), (5, 6), seed=seed), owners=owners)
    early = random_view([30] * len(owners), (5, 6), seed=seed + 1).cls_attention
    view = replace(view, _elsewhere={0: {"_cls_attention": early}})
    selection = HiRED(keep_ratio=rate, alpha=alpha).reduce(view)
    selection.check(view.n_tokens, batch_size=len(owners))
    for number in range(len(images)):
        rows = [row for row, owner in enumerate(owners) if owner == number]
        for row, expected in zip(rows, plain(view, rows, rate, alpha), strict=True):
            assert [i for i in selection.keep[row].tolist() if i >= 0] == expected


def test_a_number_of_tokens_is_per_row_on_average() -> None:
    view = replace(random_view([36] * 3, (6, 6)), owners=(0, 0, 0))
    kept = (HiRED(keep_tokens=10).reduce(view).keep >= 0).sum(1).tolist()
    assert kept[0] == 15
    assert 14 <= sum(kept[1:]) <= 15


class Spy(HiRED):
    """Remembers what it saw and decided."""

    seen: ClassVar[list[tuple[VisionView, Selection]]] = []

    def reduce(self, view: VisionView) -> Selection:
        selection = super().reduce(view)
        self.seen.append((view, selection))
        return selection


@torch.no_grad()
def test_tiles_of_large_images_share_a_budget() -> None:
    """Two images of a thumbnail and tiles each, of different numbers."""
    Spy.seen.clear()
    family = families()["llava_next"]
    model = family.model()
    with Pipeline(vision=Spy(keep_ratio=0.4)).attach(model) as trace:
        model(**family.sample(2, 3))
    ((view, selection),) = Spy.seen
    assert sorted(set(view.owners)) == [0, 1]
    assert len(view.owners) > 3
    for number in (0, 1):
        rows = [row for row, owner in enumerate(view.owners) if owner == number]
        for row, expected in zip(rows, plain(view, rows, 0.4, 0.5), strict=True):
            assert [i for i in selection.keep[row].tolist() if i >= 0] == expected
    # What stands in a tile's padding is lost in packing, newlines come on top.
    assert 0 < trace.last.after_vision[0] < trace.last.image_tokens[0]
