"""The re-created published code paths select what tokcomp's strategies select, and give the same logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.baselines.fastv import PublishedFastV
from benchmarks.baselines.h2o import PublishedH2O
from benchmarks.baselines.mustdrop import PublishedMustDrop
from benchmarks.pipelines import window_threshold
from tests.tiny_models import llava, pixels, prompt
from tokcomp import Pipeline


def one_sample(tiles: int = 1) -> dict[str, Any]:
    return {"input_ids": prompt(36 * tiles, 5, 8), "pixel_values": pixels(tiles)}


@torch.inference_mode()
def compressed(model: Any, pipeline: Pipeline, inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
    with pipeline.attach(model) as trace:
        logits = model(**inputs, use_cache=True, logits_to_keep=1).logits
    return logits, trace.last


@pytest.mark.parametrize(("removes", "eager"), [(True, False), (True, True), (False, False)])
def test_fastv(removes: bool, eager: bool) -> None:
    model, inputs = llava(), one_sample()
    logits, record = compressed(model, Pipeline(prefill="fastv"), inputs)
    published = PublishedFastV(model, inputs, removes=removes, eager=eager)
    torch.testing.assert_close(published(), logits, atol=1e-4, rtol=0)
    assert torch.equal(published.kept, record.kept[-1][0])
    lengths = [layer.keys.shape[2] for layer in published.decoder.cache.layers]
    assert lengths == [49, 49, *([31] * 6 if removes else [49] * 6)]


def test_h2o() -> None:
    model, inputs = llava(), one_sample()
    logits, record = compressed(model, Pipeline(cache="h2o"), inputs)
    published = PublishedH2O(model, inputs)
    torch.testing.assert_close(published(), logits, atol=1e-4, rtol=0)
    entries = record._request.entries
    assert [layer.keys.shape[2] for layer in published.decoder.cache.layers] == [entry.length for entry in entries]


@pytest.mark.parametrize("tiles", [1, 2])
def test_mustdrop(tiles: int) -> None:
    model, inputs = llava(), one_sample(tiles)
    inputs["pixel_values"][:] = inputs["pixel_values"][:1]  # as many windows merge in every tile
    threshold = window_threshold(model, inputs["pixel_values"], 0.6)
    vision = {"name": "mustdrop", "threshold": threshold, "key_ratio": 0.2}
    prefill = {"name": "mustdrop", "global_threshold": 0.03, "individual_threshold": 0.05}
    logits, record = compressed(model, Pipeline(vision, prefill, "mustdrop"), inputs)
    published = PublishedMustDrop(
        model, inputs, threshold=threshold, key_ratio=0.2, global_threshold=0.03, individual_threshold=0.05
    )
    torch.testing.assert_close(published(), logits, atol=1e-4, rtol=0)
    assert 13 < len(published.kept) < int(record.after_vision) + 13
    lengths = [layer.keys.shape[2] for layer in published.decoder.cache.layers]
    assert lengths == [int(length) for length in record.cache_lengths]
