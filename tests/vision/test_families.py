"""Every reducer on every family of models: it shortens the prompt, or is refused in one line before anything runs."""

from __future__ import annotations

import pytest
import torch

from tests.models.families import families
from tokcomp import VISION, Pipeline
from tokcomp.errors import TokcompError
from tokcomp.models.adapter import find_adapter

FIELDS = {"mustdrop": {"threshold": 0.3, "window": 2}, "evit": {"layers": [0], "keep_ratio": 0.5}, "tome": {"r": 2},
          "pitome": {"r": 0.1}, "visionzip": {"keep_ratio": 0.5}, "prumerge_plus": {"keep_ratio": 0.5}}  # fmt: skip
INSIDE = {"evit", "mustdrop", "pitome", "tome"}
"""They remove tokens inside the tower, which not every tower allows."""


@pytest.mark.parametrize("name", families())
@torch.no_grad()
def test_runs_or_is_refused(name: str) -> None:
    family = families()[name]
    model, sample = family.model(), family.sample(2, 1)
    tower = find_adapter(model).tower
    refused: dict[str, str] = {}
    for reducer in VISION:
        pipeline = Pipeline(vision={"name": reducer, **FIELDS.get(reducer, {})})
        try:
            with pipeline.attach(model) as trace:
                logits = model(**sample).logits
        except TokcompError as error:
            refused[reducer] = str(error)
            continue
        record = trace.last
        assert record.after_vision[0] < record.image_tokens[0], reducer
        assert torch.isfinite(logits).all(), reducer
        kept = record.kept[0][0]
        assert len(kept) == record.after_vision[0] == len(set(kept.tolist())), reducer
    assert not any("\n" in message for message in refused.values())
    assert refused.keys() <= (INSIDE if tower.has_cls else INSIDE | {"hired"}), refused
