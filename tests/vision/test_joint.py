"""One budget for several rows: frames of a video, images of a prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.packed_models import FAMILIES, model, prompt, together
from tests.tiny_models import generate
from tokcomp import Pipeline, Selection
from tokcomp.errors import ConfigurationError, UnsupportedError
from tokcomp.vision.fastervlm import FasterVLM


def scores(made: Any, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What FasterVLM goes by, row by row of the tower."""
    seen: list[torch.Tensor] = []

    def look(self: FasterVLM, view: Any) -> Selection:
        seen.extend(row[valid] for row, valid in zip(view.cls_attention.mean(dim=1), view.valid, strict=True))
        return Selection.all(view.n_tokens, batch_size=view.batch_size)

    with monkeypatch.context() as patch, Pipeline("fastervlm").attach(made):
        patch.setattr(FasterVLM, "reduce", look)
        made(**inputs)
    return seen


def joint(over: str, **fields: Any) -> Pipeline:
    return Pipeline({"name": "joint", "over": over, "strategy": {"name": "fastervlm", **fields}})


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_frames_share_a_budget(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = model(family)
    inputs = prompt(4, ("video", (3, 8, 4)), 5, family=family, seed=5)
    best = torch.cat(scores(made, inputs, monkeypatch)).topk(5).indices.sort().values
    with joint("image", keep_tokens=5).attach(made) as trace:
        made(**inputs)
    assert torch.equal(trace.last.kept[0][0], best)
    other = prompt(2, ("video", (2, 8, 4)), 4, family=family, seed=6)  # of fewer frames
    with joint("image", keep_ratio=0.3).attach(made) as trace:
        made(**together(inputs, other))
        made(**inputs)
        made(**other)
    batch, *alone = trace.requests
    assert batch.after_vision == (7, 5)
    assert [torch.equal(one.kept[0][0], batch.kept[0][i]) for i, one in enumerate(alone)] == [True, True]
    with Pipeline({"name": "fastervlm", "keep_tokens": 5}).attach(made) as trace:
        made(**inputs)
    assert trace.last.after_vision == (15,)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_images_of_a_prompt_share_a_budget(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = model(family)
    rows = [prompt(2, ("image", (1, 4, 4)), 3, ("image", (1, 6, 8)), 5, family=family, seed=2),
            prompt(4, ("image", (1, 8, 8)), 6, family=family, seed=1),
            prompt(3, ("image", (1, 4, 8)), 1, ("image", (1, 4, 8)), 4, family=family, seed=3)]  # fmt: skip
    best = torch.cat(scores(made, rows[2], monkeypatch)).topk(6).indices.sort().values
    with joint("prompt", keep_tokens=6).attach(made) as trace:
        whole = generate(made, 2, **together(*rows))
        batch = trace.last
        alone = [generate(made, 2, **row) for row in rows]
    assert batch.after_vision == (6, 6, 6)
    assert torch.equal(batch.kept[0][2], best)
    for i, one in enumerate(alone):
        assert torch.equal(trace.requests[1 + i].kept[0][0], batch.kept[0][i])
        torch.testing.assert_close(one.logits[1][0], whole.logits[1][i], atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_frame_may_lose_all_its_tokens() -> None:
    made = model("qwen2_vl")
    inputs = prompt(4, ("video", (4, 4, 4)), 5, family="qwen2_vl", seed=5)
    uniform = {"name": "joint", "strategy": {"name": "uniform", "keep_tokens": 2}}
    with Pipeline(uniform).attach(made) as trace:
        generate(made, 2, **inputs)
    assert trace.last.after_vision == (2,)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="shares a budget already"):
        Pipeline({"name": "joint", "strategy": "joint"})
    with pytest.raises(ConfigurationError, match="put the sequence into a joint strategy"):
        Pipeline({"name": "sequence", "steps": ["joint"]})
    made = model("qwen2_vl")
    inputs = prompt(4, ("video", (2, 4, 4)), 5, family="qwen2_vl")
    with (
        Pipeline({"name": "joint", "strategy": "tome"}).attach(made),
        pytest.raises(UnsupportedError, match="merges tokens"),
    ):
        made(**inputs)
