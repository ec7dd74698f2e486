"""Any vision x prefill x cache triple runs on the embedded model, or is refused in one line and leaves the model as it was."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
import torch

from tokcomp import Pipeline
from tokcomp.embedded import load_model, load_processor, prompt, question_set
from tokcomp.errors import TokcompError
from tokcomp.experiment.library import RULES, Direct
from tokcomp.registry import REGISTRIES

SEEDS = range(300)
CHUNK = 50
SHARES = (0.5, 0.25, 1 / 9, 1 / 16)


def choice(stage: str, dice: random.Random) -> dict[str, Any] | None:
    """A strategy of the stage, mostly at a budget; sometimes as it is published; sometimes none."""
    name = dice.choice(["none", *REGISTRIES[stage]])
    if name == "none":
        return None
    rule, share = RULES.get((stage, name)), dice.choice(SHARES)
    fields: dict[str, Any] = {}
    if isinstance(rule, Direct):
        fields = rule.fields(share, 144, 6)
    elif rule is None:
        fields = {"keep_ratio": share}
    if stage == "prefill" and "positions" in REGISTRIES[stage][name].model_fields:
        fields["positions"] = dice.choice(["keep", "renumber"])
    return {"name": name, **(fields if dice.random() < 0.8 else {})}


@pytest.fixture(scope="module")
def embedded() -> tuple[Any, dict[str, Any]]:
    items = question_set(2, seed=3)
    inputs = load_processor()(images=[item.image for item in items], text=[prompt(item.question) for item in items],
                              padding=True, padding_side="left", return_tensors="pt")  # fmt: skip
    return load_model(), inputs


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, len(SEEDS), CHUNK))
@torch.no_grad()
def test_runs_or_is_refused_in_one_line(start: int, embedded: tuple[Any, dict[str, Any]]) -> None:
    model, inputs = embedded
    before = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    ran, refused = 0, []
    for seed in SEEDS[start : start + CHUNK]:
        dice = random.Random(seed)
        triple = {stage: choice(stage, dice) for stage in REGISTRIES}
        try:
            with Pipeline(**triple).attach(model) as trace:
                out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        except TokcompError as error:
            refused.append((str(error), triple))
            continue
        ran += 1
        assert out.shape[1] > inputs["input_ids"].shape[1], triple
        tokens = [max(layer) for layer in trace.last.vision_tokens]
        assert all(1 <= after <= entering <= 144 for entering, after in pairwise(tokens)), triple
        assert "sample 1" in trace.last.summary(), triple
    assert not [(line, triple) for line, triple in refused if not line or "\n" in line]
    assert ran > CHUNK // 2
    assert torch.equal(model.generate(**inputs, max_new_tokens=3, do_sample=False), before)
