"""The merging wrapper, against a loop over the rule and against golden vectors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from tests.cache.views import alone, kept, merged, prompt_view, random_view
from tests.golden_cases import cases, group, meta
from tokcomp.cache.merging import Merging
from tokcomp.types import Selection

GOLDEN = cases("extra_merging", "merging", having="v_out")
PLAIN = {"name": "knorm", "sinks": 0, "recent_tokens": 0}


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), GOLDEN, ids=lambda value: getattr(value, "name", value))
def test_golden(folder: Path, case: str) -> None:
    golden, params = group(folder, case), meta(folder)["cases"][case]["params"]
    base = {**PLAIN, "keep_tokens": golden["kept_idx"].shape[-1]}
    policy = Merging(base=base, threshold=params["similarity_threshold"], merge_fraction=params["merge_fraction"])
    view = prompt_view(policy, golden["k"], golden["v"])
    selection = policy.after_prefill(view)
    assert torch.equal(selection.keep, golden["kept_idx"])
    keys, values = merged(view, selection, keys_too=policy.merges_keys())
    torch.testing.assert_close(values, golden["v_out"], atol=1e-4, rtol=0)
    assert torch.equal(keys, view.keys.gather(2, selection.keep[..., None].expand_as(keys)))


@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_values_go_to_the_most_similar_key(threshold: float) -> None:
    policy = Merging(base={**PLAIN, "keep_tokens": 5}, threshold=threshold, respects_protected=False)
    view = random_view([24, 15], policy=policy, seed=3)
    selection = policy.after_prefill(view)
    selection.check(view.n_entries, batch_size=2, valid=view.valid)
    _, values = merged(view, selection, keys_too=False)
    for row in range(2):
        one, place = alone(view, row), view.valid[row, 0].long().cumsum(0) - 1
        for head in range(2):
            keys, content = one.keys[0, head].double(), one.values[0, head].double()
            unit = torch.nn.functional.normalize(keys, dim=-1)
            keep = place[selection.keep[row, head]].tolist()
            totals = {c: (content[c].clone(), 1.0) for c in keep}
            for p in range(len(keys)):
                if p in totals:
                    continue
                c = max(keep, key=lambda c: float(unit[p] @ unit[c]))
                cosine = float(unit[p] @ unit[c])
                if cosine >= threshold:
                    weight = max(cosine, 0) * float(content[p].norm() / (content[p].norm() + content[c].norm()))
                    totals[c] = totals[c][0] + weight * content[p], totals[c][1] + weight
            expected = torch.stack([total / weight for total, weight in totals.values()])
            torch.testing.assert_close(values[row, head].double(), expected, atol=1e-5, rtol=0)


def test_merges_at_every_step_that_its_base_acts_at() -> None:
    policy = Merging(base={"name": "h2o", "heavy_tokens": 3, "recent_tokens": 2})
    assert policy.decodes()
    view = random_view([12], policy=policy)
    first = policy.after_prefill(view)
    assert first.assign is not None
    again = policy.after_step(replace(view, generated=1))
    assert kept(again, view, 0) == kept(policy.base.after_step(replace(view, memory={})), view, 0)


def test_nothing_that_leaves_nothing_to_merge() -> None:
    policy = Merging(base={"name": "h2o", "heavy_tokens": 30, "recent_tokens": 20})
    assert policy.after_prefill(random_view([12], policy=policy)) is None
    whole = Merging(base={**PLAIN, "keep_ratio": 1.0})
    view = random_view([12], policy=whole)
    selection = whole.after_prefill(view)
    assert torch.equal(merged(view, selection, keys_too=False)[1], view.values)
    assert isinstance(selection, Selection)


def test_refuses_a_base_that_takes_nothing_away() -> None:
    with pytest.raises(ValidationError, match="only hides entries"):
        Merging(base={"name": "h2o", "eviction": "mask"})
    with pytest.raises(ValidationError, match="positions belong to the wrapper"):
        Merging(base="streaming_llm")
