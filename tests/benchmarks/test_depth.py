"""The diagnosis of `scenes-hard`: its cells, its probes on a model, and the tables made of its records."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.depth.answering import _strategy
from benchmarks.depth.cells import all_cells
from benchmarks.depth.probes import Leave, RankedFilter, RankedPolicy, RankedReducer, worth
from tests.docs.test_generated import load
from tokcomp import Pipeline
from tokcomp.embedded.hard.dataset import hard_question_set
from tokcomp.stages import Strategy

OWNER = (-1, 4, 4, 4, -1, 7)


def test_an_oracle_keeps_one_patch_of_every_glyph_first() -> None:
    assert worth(OWNER, objects=True) == (0, 1, 2, 1, 0, 2)
    assert worth(OWNER, objects=False) == (0, -1, -2, -1, 0, -2)


def test_cells_have_names_of_their_own_and_every_pipeline_builds() -> None:
    cells = all_cells()
    assert len({cell.id for cell in cells}) == len(cells)
    assert cells[0].table == "baseline"
    items = hard_question_set(2)
    for cell in cells:
        for stage in ("vision", "prefill", "cache"):
            fields = getattr(cell, stage)
            if fields is not None:
                built = _strategy(stage, fields, items)
                assert isinstance(built, Strategy) or Pipeline(**{stage: built}) != Pipeline()


@pytest.fixture(scope="module")
def asked() -> tuple[object, dict[str, object], tuple[int, ...]]:
    """The first embedded model, which is as good for this, and one scene."""
    from tokcomp.embedded import load_model, load_processor, prompt, question_set

    item = question_set(1, kinds=["list_colours"])[0]
    inputs = load_processor()(images=item.image, text=prompt(item.question), return_tensors="pt")
    return load_model(), dict(inputs), tuple(item.scene.obj.reshape(-1).tolist())


@pytest.mark.parametrize("stage", ["vision", "prefill", "cache"])
def test_probes_keep_what_they_are_told(stage: str, asked: tuple[object, dict[str, object], tuple[int, ...]]) -> None:
    model, inputs, owner = asked
    ranks = (worth(owner, objects=True),)
    probes = {
        "vision": RankedReducer(ranks=ranks, keep_tokens=10),
        "prefill": RankedFilter(ranks=ranks, keep_tokens=10, layer=3),
        "cache": RankedPolicy(ranks=ranks, keep_ratio=0.15),
    }
    with Pipeline(**{stage: probes[stage]}).attach(model) as trace, torch.inference_mode():  # type: ignore[arg-type]
        model.generate(**inputs, max_new_tokens=2)  # type: ignore[attr-defined]
    if stage == "cache":
        prompt = inputs["input_ids"].shape[1]  # type: ignore[attr-defined]
        assert set(trace.last.cache_lengths) == {round(prompt * 0.15) + 1}
        return
    kept = trace.last.kept[5][0].tolist()
    best = sorted(range(144), key=lambda i: (-ranks[0][i], i))[:10]
    assert kept == sorted(best)


@pytest.mark.parametrize("step", [0, 2])
def test_vision_entries_leave_after_their_step(
    step: int, asked: tuple[object, dict[str, object], tuple[int, ...]]
) -> None:
    model, inputs, _ = asked
    prompt = inputs["input_ids"].shape[1]  # type: ignore[attr-defined]
    lengths = []
    for new in (1, 2, 3, 4):
        with Pipeline(cache=Leave(step=step, keep_tokens=5)).attach(model) as trace, torch.inference_mode():  # type: ignore[arg-type]
            model.generate(**inputs, max_new_tokens=new, min_new_tokens=new)  # type: ignore[attr-defined]
        lengths.append(set(trace.last.cache_lengths))
    # A new token's entry is made when the next one is asked for.
    expected = [prompt + made - (139 if made >= step else 0) for made in range(4)]
    assert lengths == [{length} for length in expected]


def test_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    depth = load("hooks/depth.py")
    cells = [
        {"table": "vision", "strategy": name, "where": 36, "right": right, "samples": 100}
        for name, right in (("random", 30), ("fastervlm", 80))
    ]
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({"gaze": None, "cells": cells}))
    monkeypatch.setattr(depth, "SUMMARY", path)
    depth.summary.cache_clear()
    assert depth.vision().splitlines()[2:4] == ["| fastervlm | 80.0 (71 to 87) |", "| random | 30.0 (22 to 40) |"]
    assert depth.gaze() == depth.caches() == ""
    depth.summary.cache_clear()
    sys.modules.pop("depth", None)
