"""MustDrop's cache cut, against golden vectors of the published code."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.cache.views import kept, random_view
from tests.golden_cases import folders, group, meta
from tests.prefill.test_mustdrop import of_one_sample
from tokcomp import CACHE, CacheView
from tokcomp.cache.mustdrop import MustDrop
from tokcomp.errors import CompatibilityError
from tokcomp.prefill.mustdrop import MustDrop as Filter


def test_text_and_final_tokens_stay() -> None:
    view = random_view([30, 12, 21], protected=0.2)
    for respects in (True, False):
        selection = MustDrop(respects_protected=respects).after_prefill(view)
        for row in range(3):
            stays = view.final[row, 0] | ~view.vision[row, 0] | (view.protected[row, 0] & respects)
            assert kept(selection, view, row) == [view.index[row, 0, stays & view.valid[row, 0]].tolist()] * 2


def test_nothing_leaves_where_no_filter_acted() -> None:
    view = random_view([9, 14])
    view = replace(view, _final=view.valid)
    selection = MustDrop().after_prefill(view)
    assert [kept(selection, view, row) for row in range(2)] == [kept(None, view, row) for row in range(2)]


def test_the_published_setting() -> None:
    policy = CACHE["mustdrop"]()
    assert policy.spec() == {
        "name": "mustdrop",
        "first_layer": None,
        "positions": "renumber",
        "respects_protected": True,
        "keep_text": True,
    }
    assert not policy.acts_in_decoding
    assert not policy.hides()
    assert [policy.acts_on(depth).start for depth in (1, 8, 16, 32, 40)] == [0, 0, 1, 2, 2]
    assert policy.acts_on(32) == range(2, 32)
    assert MustDrop(first_layer=-3).acts_on(8) == range(5, 8)
    with pytest.raises(CompatibilityError, match=r"cache\.mustdrop\.first_layer=8"):
        MustDrop(first_layer=8).acts_on(8)
    with pytest.raises(ValidationError, match="keep_text"):
        MustDrop(keep_text=False)


def cache_of(present: Tensor, vision: Tensor, final: Tensor) -> CacheView:
    """One layer of one sample that holds the positions ``present``; ``vision`` and ``final`` are positions too."""
    shape = (1, 1, len(present))
    return replace(
        random_view([len(present)], heads=1),
        index=present.view(shape),
        vision=torch.isin(present, vision).view(shape),
        _final=(torch.isin(present, final) | ~torch.isin(present, vision)).view(shape),
    )


CUTS = [
    pytest.param(folder, case, id=f"{folder.name}-{case}")
    for folder in folders("mustdrop_cache")
    for case in meta(folder)["cases"]
]


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), CUTS)
def test_layers_hold_what_the_published_code_leaves(folder: Path, case: str) -> None:
    golden, params = group(folder, case), meta(folder)["cases"][case]["params"]
    start, n, text = params["v_token_start"], params["image_tokens"], params["text_tokens"]
    vision = torch.arange(start, start + n)
    rule = Filter(
        layers=tuple(params["pruning_layers"]),
        global_threshold=params["global_thr"],
        individual_threshold=params["individual_thr"],
    )
    sequence = torch.arange(start + n + text)
    keys, entering = torch.tensor(params["key_set"], dtype=torch.long) + start, []
    for layer in range(params["layers"]):
        entering.append(sequence)
        if layer not in rule.acts_after(params["layers"]):
            continue
        stage, alive = params["pruning_layers"].index(layer), sequence[torch.isin(sequence, vision)]
        attention = golden[f"attn_text_to_vision_stage{stage}"]
        view = of_one_sample(attention, torch.isin(alive, keys).nonzero()[:, 0])
        sequence = sequence[~torch.isin(sequence, vision) | torch.isin(sequence, alive[rule.filter(view).keep[0]])]
        assert torch.isin(entering[-1], sequence).nonzero()[:, 0].tolist() == golden[f"merged_stage{stage}"].tolist()
    assert sequence.tolist() == golden["final_positions"].tolist()

    policy = MustDrop()
    for layer, present in enumerate(entering):
        held = present
        if layer in policy.acts_on(params["layers"]):
            held = present[policy.after_prefill(cache_of(present, vision, sequence)).keep[0]]
        wanted = golden["kept_positions_per_layer"][layer]
        assert len(present) == int(golden["cache_len_before"][layer])
        assert len(held) == int(golden["cache_len_after"][layer])
        assert held.tolist() == wanted[wanted >= 0].tolist()


COMPOSED = [
    pytest.param(folder, case, id=f"{folder.name}-{case['name']}")
    for folder in folders("mustdrop_prefill")
    for case in meta(folder)["cases"]
]


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), COMPOSED)
def test_final_tokens_are_found_in_every_stage(folder: Path, case: dict[str, Any]) -> None:
    golden, params = group(folder, case["name"]), case["params"]
    start, n = params["image_start"], params["image_len"]
    vision, stages = torch.arange(start, start + n), len(params["pruning_layers"])
    entering = [torch.arange(start + n + params["text_len"])]
    for stage in range(stages):
        sequence = entering[-1]
        alive = sequence[torch.isin(sequence, vision)]
        gone = alive[~torch.isin(torch.arange(len(alive)), golden[f"kept_{stage}"])]
        entering.append(sequence[~torch.isin(sequence, gone)])
    for stage in range(stages):
        keep = MustDrop().after_prefill(cache_of(entering[stage], vision, entering[-1])).keep[0]
        assert keep.tolist() == golden[f"cache_ids_{stage}"].tolist()
