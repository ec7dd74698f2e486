"""VisionZip against the published vectors and a plain loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from tests.golden_cases import folders, group, meta
from tokcomp import VisionView
from tokcomp.errors import CompatibilityError
from tokcomp.ops.merging import apply_selection
from tokcomp.testing.vision_views import random_view
from tokcomp.vision.visionzip import VisionZip

CASES = [pytest.param(folder, case, id=f"{folder.name}-{case['name']}")
         for folder in folders("visionzip") for case in meta(folder)["cases"] if "hidden" in case["tensors"]]  # fmt: skip


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), CASES)
def test_published_vectors(folder: Path, case: dict[str, Any]) -> None:
    vectors, params = group(folder, case["name"]), case["params"]
    hidden, n = vectors["hidden"], vectors["hidden"].shape[1] - 1
    b = hidden.shape[0]
    view = replace(random_view([n] * b, (1, n)), tokens=hidden[:, 1:], _cls_token=hidden[:, 0],
                   _keys=vectors["metric"][:, 1:], _cls_attention=vectors["cls_attn"][..., 1:])  # fmt: skip
    selection = VisionZip(dominant=params["dominant"], contextual=params["contextual"]).reduce(view)
    selection.check(n, batch_size=b)
    out, _ = apply_selection(view.tokens, view.sizes, selection, cls_token=view.cls_token)
    assert torch.equal(selection.keep[:, 1 : params["dominant"]] + 1, vectors["dominant_sorted"][:, 1:])
    torch.testing.assert_close(out, vectors["out"], atol=1e-5, rtol=0)


def plain(view: VisionView, row: int, dominant: int, contextual: int) -> list[Tensor]:
    """The paper's rule for one image, token by token."""
    count = int(view.counts[row])
    if dominant + contextual >= count:
        return list(view.tokens[row, :count])
    attention = [float(view.cls_attention[row, :, i].sum()) for i in range(count)]
    kept = sorted(sorted(range(count), key=lambda i: (-attention[i], i))[: dominant - int(view.has_cls_token)])
    rest = [i for i in range(count) if i not in kept]
    step = max(1, len(rest) // contextual) if contextual else 1
    targets = rest[::step][:contextual]
    unit = torch.nn.functional.normalize(view.keys[row], dim=-1)
    followers: dict[int, list[int]] = {target: [] for target in targets}
    for i in rest:
        if targets and i not in targets:
            followers[max(targets, key=lambda t: (float(unit[i] @ unit[t]), -t))].append(i)
    out = [view.cls_token[row]] if view.has_cls_token else []
    out += [view.tokens[row, i] for i in kept]
    for target, members in followers.items():
        extra = torch.stack([view.tokens[row, i] for i in members]).mean(0) if members else 0
        out.append(view.tokens[row, target] + extra)
    return out


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(1, 20), min_size=1, max_size=3), tokens=st.integers(1, 25), cls=st.booleans(),
       seed=st.integers(0, 99))  # fmt: skip
def test_equals_the_plain_rule(counts: list[int], tokens: int, cls: bool, seed: int) -> None:
    view = random_view(counts, (4, 5), seed=seed)
    view = view if cls else replace(view, has_cls=False, _cls_token=None)
    selection = VisionZip(keep_tokens=tokens).reduce(view)
    selection.check(view.n_tokens, batch_size=len(counts), valid=view.valid)
    out, _ = apply_selection(view.tokens, view.sizes, selection, cls_token=view.cls_token if cls else None)
    for row, count in enumerate(counts):
        budget = min(tokens, count)
        contextual = min(max(1, round(budget * 10 / 64)), budget - 1)
        expected = plain(view, row, budget - contextual, contextual)
        assert int((selection.keep[row] >= 0).sum()) == len(expected) == budget
        torch.testing.assert_close(out[row, :budget], torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("budget", "split"), [(64, (54, 10)), (128, (108, 20)), (192, (162, 30))])
def test_the_published_budgets_are_split_as_published(budget: int, split: tuple[int, int]) -> None:
    view = random_view([576], (24, 24))
    one, other = VisionZip(keep_tokens=budget), VisionZip(dominant=split[0], contextual=split[1])
    assert torch.equal(one.reduce(view).keep, other.reduce(view).keep)


def test_every_patch_without_a_slot_counts_to_the_token_that_it_follows() -> None:
    view = random_view([36], (6, 6))
    selection = VisionZip(dominant=5, contextual=4).reduce(view)
    assert selection.keep.shape == (1, 9)
    slots = selection.assign[0]
    assert (slots[slots >= 0] > 0).all()  # no patch is in the CLS token, not even the one at whose place it stands
    assert (slots < 5).sum() == 4  # the dominant patches
    assert selection.keep[0, 0] not in selection.keep[0, 1:]


def test_image_order_puts_contextual_tokens_at_their_targets() -> None:
    view = random_view([36], (6, 6))
    selection = VisionZip(dominant=5, contextual=4, order="image").reduce(view)
    assert selection.keep[0, 1:].tolist() == sorted(selection.keep[0, 1:].tolist())


def test_a_budget_that_cannot_be_met_names_the_fields() -> None:
    with pytest.raises(CompatibilityError, match=r"vision.visionzip.dominant=30 and contextual=8 make 38 .* has 36"):
        VisionZip(dominant=30, contextual=8).reduce(random_view([36], (6, 6)))


@pytest.mark.parametrize("fields", [{"dominant": 5}, {"contextual": 5}, {"dominant": 0, "contextual": 3},
                                    {"keep_tokens": 9, "dominant": 5, "contextual": 4}])  # fmt: skip
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        VisionZip(**fields)
