"""A batch gives what its samples give one by one: same ids, same kept tokens, logits within 1e-4."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from tests.tiny_models import batch, generate, llava, pixels, prompt
from tokcomp import CACHE, PREFILL, VISION, Pipeline

# Thresholds at which the random tiny model loses some tokens, and not all.
TUNED: dict[str, dict[str, Any]] = {
    "vision/mustdrop": {"threshold": 0.6, "merge_layer": 1},
    "vision/tome": {"r": 4},
    "prefill/mustdrop": {"layers": (1, 3, 5), "global_threshold": 0.03, "individual_threshold": 0.05},
    "cache/h2o": {"heavy_tokens": 10, "recent_tokens": 6},
    "cache/streaming_llm": {"recent_tokens": 12},
}


def spec(stage: str, name: str) -> dict[str, Any]:
    return {"name": name, **TUNED.get(f"{stage}/{name}", {})}


def samples() -> list[dict[str, Any]]:
    """Three prompts of different lengths with different images; the last image merges most."""
    shapes = [(4, 6), (9, 3), (2, 11)]
    images = [pixels(seed=1), pixels(seed=2), torch.nn.functional.interpolate(pixels(seed=3, size=12), size=84)]
    return [
        {"input_ids": prompt(36, *shape, seed=i), "pixel_values": image}
        for i, (shape, image) in enumerate(zip(shapes, images, strict=True))
    ]


def together(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        **batch(*(row["input_ids"] for row in rows)),
        "pixel_values": torch.cat([row["pixel_values"] for row in rows]),
    }


def assert_same(model: Any, pipeline: Pipeline, *, steps: int = 3) -> None:
    rows = samples()
    with pipeline.attach(model) as trace:
        whole = generate(model, steps, **together(rows))
        kept = trace.last.kept
        alone = [generate(model, steps, **row) for row in rows]
        records = trace.requests[1:]
    for i, (one, record) in enumerate(zip(alone, records, strict=True)):
        for layer, tensors in enumerate(record.kept):
            assert torch.equal(tensors[0], kept[layer][i]), (i, layer)
        for step, logits in enumerate(one.logits):
            torch.testing.assert_close(logits[0], whole.logits[step][i], atol=1e-4, rtol=0)
        assert torch.equal(one.sequences[0, -steps:], whole.sequences[i, -steps:])


ALONE = [
    (stage, name) for stage, names in (("vision", VISION), ("prefill", PREFILL), ("cache", CACHE)) for name in names
]


@pytest.mark.parametrize(("stage", "name"), ALONE, ids=lambda value: str(value))
def test_each_strategy(stage: str, name: str) -> None:
    """With eager attention; the contract's rule ``model`` runs every strategy with sdpa."""
    assert_same(llava(attention="eager", sharp=2.0), Pipeline(**{stage: spec(stage, name)}))


MIXES = [
    (vision, prefill, cache)
    for vision, prefill, cache in product(("mustdrop", "tome", "uniform"), ("mustdrop", "fastv"), ("mustdrop", "h2o"))
]


@pytest.mark.slow
@pytest.mark.parametrize(("vision", "prefill", "cache"), MIXES)
def test_mixes(vision: str, prefill: str, cache: str) -> None:
    pipeline = Pipeline(spec("vision", vision), spec("prefill", prefill), spec("cache", cache))
    assert_same(llava(sharp=2.0), pipeline)


def test_the_tuned_settings_do_lose_tokens_unevenly() -> None:
    """Guards the tests above: ragged retention is really exercised."""
    model = llava(sharp=2.0)
    with Pipeline(spec("vision", "mustdrop"), spec("prefill", "mustdrop"), "mustdrop").attach(model) as trace:
        generate(model, 2, **together(samples()))
    assert len(set(trace.last.after_vision)) > 1
    last = trace.last.vision_tokens[-1]
    assert len(set(last)) > 1
    assert all(1 <= count < before for count, before in zip(last, trace.last.after_vision, strict=True))
