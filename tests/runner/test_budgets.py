"""Budgets of a prompt, of each of its images or videos, of each tile or frame: chosen by one field in both stages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.families import families, models
from tests.models.test_families import assert_batch_equals_singles
from tokcomp import PREFILL, VISION, Pipeline, Selection
from tokcomp.budget import SharedBudget
from tokcomp.errors import ConfigurationError
from tokcomp.prefill.fastv import FastV
from tokcomp.vision.mustdrop import MustDrop

SEVERAL = ["llava", "llava_next", "internvl", "qwen2_5_vl", "qwen3_vl"]
VIDEOS = ["llava_next_video", "qwen2_5_vl", "llava_onevision"]
FIELDS: dict[str, dict[str, Any]] = {
    "fastv": {"layer": 2, "keep_ratio": 0.5},
    "dart": {"layer": 2, "keep_ratio": 0.5},
    "random": {"layer": 2, "keep_ratio": 0.5},
    "uniform": {"layer": 2, "keep_ratio": 0.5},
    "pyramiddrop": {"layers": (1, 2, 3)},
    "sparsevlm": {"layers": (1, 2), "keep_ratios": (0.6, 0.4)},
    "mustdrop": {"layers": (1, 2), "global_threshold": 0.03, "individual_threshold": 0.05},
    "schedule": {"steps": ({"name": "fastv", "layer": 1}, {"name": "fastv", "layer": 3})},
}


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def prefill(name: str, per: str, **fields: Any) -> Pipeline:
    return Pipeline(prefill={"name": name, **FIELDS[name], **fields, "budget_per": per})


def parts_of(trace: Any, per: str) -> Tensor:
    """Which image (or row of the tower) each placeholder of a record's only prompt belongs to, by the tower's layout."""
    ids: list[Tensor] = []
    for images in trace.last._request.images:
        layout = images.layout
        rows = torch.tensor([row for row, grid in enumerate(layout.grids) for _ in range(grid[0] * grid[1])])
        row = rows if layout.placed is None else rows[layout.placed.clamp(min=0)]
        if layout.placed is not None:  # separators go with what stands before them
            real = (layout.placed >= 0).long() * torch.arange(len(row))
            row = row[real.cummax(dim=0).values]
        ids.append(torch.tensor(layout.owners)[row] if per == "image" else row)
    return torch.cat(ids)


@pytest.mark.parametrize("per", ["prompt", "image", "row"])
@pytest.mark.parametrize("name", SEVERAL)
def test_fastv_keeps_the_best_of_each_part(name: str, per: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sample = models(name), families()[name].sample(2, 0)
    seen: list[Tensor] = []

    def look(self: FastV, view: Any) -> Selection:
        seen.append(view.attention.mean(dim=1)[0, -1])
        return Selection.all(view.n_tokens, batch_size=view.batch_size)

    with monkeypatch.context() as patch, prefill("fastv", "prompt").attach(model) as trace:
        patch.setattr(FastV, "filter", look)
        model(**sample)
    part = torch.zeros(len(seen[0]), dtype=torch.long) if per == "prompt" else parts_of(trace, per)
    expected = []
    for number in part.unique():
        own = (part == number).nonzero()[:, 0]
        expected.append(own[seen[0][own].topk(round(len(own) * 0.5)).indices])
    with prefill("fastv", per).attach(model) as trace:
        model(**sample)
    assert torch.equal(trace.last.kept[-1][0], torch.cat(expected).sort().values)


@pytest.mark.parametrize("name", PREFILL)
def test_of_one_image_all_budgets_are_one(name: str) -> None:
    model, sample = models("llava"), families()["llava"].sample(1, 0)
    kept = []
    for per in ("prompt", "image", "row"):
        with prefill(name, per).attach(model) as trace:
            logits = model(**sample).logits
        kept.append((trace.last.kept[-1][0], logits))
    assert len(kept[0][0]) < trace.last.image_tokens[0]
    for indices, logits in kept[1:]:
        assert torch.equal(indices, kept[0][0])
        torch.testing.assert_close(logits, kept[0][1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", PREFILL)
def test_a_batch_gives_what_its_samples_give(name: str) -> None:
    """Other numbers and sizes of images: the parts of one sample are no business of another."""
    assert_batch_equals_singles("qwen2_5_vl", prefill(name, "image"), [(1, 0), (3, 1), (2, 3)], steps=1)


@pytest.mark.parametrize("name", ["fastv", "sparsevlm"])
def test_samples_without_images(name: str) -> None:
    assert_batch_equals_singles("llava", prefill(name, "image"), [(1, 0), (0, 1), (2, 2)])


def test_merging_stays_within_a_part() -> None:
    model, sample = models("llava"), families()["llava"].sample(3, 0)
    with prefill("sparsevlm", "image", keep_ratios=(0.4, 0.3), recycle=0.9).attach(model) as trace:
        model(**sample)
    request = trace.last._request
    image = request.prompt.image[0]
    merges = list(request.merges.values())
    assert merges
    own = torch.arange(len(image))
    moved = [(own[target[0] != own], target[0][target[0] != own]) for target in merges]
    assert sum(len(source) for source, _ in moved)
    assert all(torch.equal(image[source], image[target]) for source, target in moved)
    assert set(image[request.layers[-1].index[0]].tolist()) == {-1, 0, 1, 2}


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_have_a_budget_each_or_share_one(name: str) -> None:
    model, video = models(name), families()[name].video
    assert video is not None
    sample, counts = video(0), {}
    for per in ("row", "image"):
        with prefill("fastv", per, keep_tokens=3, keep_ratio=None).attach(model) as trace:
            model(**sample)
        counts[per] = len(trace.last.kept[-1][0])
    frames = len(trace.last._request.rows_of[0])
    assert frames > 1
    assert counts == {"row": 3 * frames, "image": 3}


SHARED = [name for name, strategy in VISION.items() if issubclass(strategy, SharedBudget)]


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("per", ["image", "prompt"])
def test_reducers_share_a_budget_as_joint_ones_do(name: str, per: str) -> None:
    made, sample = models("qwen2_5_vl"), families()["qwen2_5_vl"].sample(2, 0)
    if per == "image":
        sample = families()["qwen2_5_vl"].video(0)  # type: ignore[misc]
    kept = []
    for spec in ({"name": name, "keep_tokens": 5, "budget_per": per},
                 {"name": "joint", "over": per, "strategy": {"name": name, "keep_tokens": 5}}):  # fmt: skip
        with Pipeline(spec).attach(made) as trace:
            made(**sample)
        kept.append(trace.last.kept[0][0])
    assert torch.equal(*kept)
    assert len(kept[0]) == 5


def test_which_reducers_can() -> None:
    assert {"fastervlm", "divprune", "cdpruner", "vispruner", "random", "uniform"} <= set(SHARED)
    assert not issubclass(MustDrop, SharedBudget)
    with pytest.raises(ConfigurationError, match="budget_per"):
        Pipeline({"name": "tome", "budget_per": "prompt"})
    with pytest.raises(ConfigurationError, match="shares a budget already"):
        Pipeline({"name": "joint", "strategy": {"name": "fastervlm", "budget_per": "image"}})
