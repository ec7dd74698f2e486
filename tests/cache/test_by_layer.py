"""The combination by layer: every range as its policy alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from tests.cache.views import random_view
from tests.tiny_models import generate, llava, pixels, prompt
from tokcomp import Pipeline
from tokcomp.cache.by_layer import ByLayer
from tokcomp.errors import CompatibilityError, ConfigurationError
from tokcomp.runner.arguments import cache_in

RANGES = [
    {"first_layer": 1, "policy": {"name": "snapkv", "keep_tokens": 12, "window": 3}},
    {"first_layer": 0.5, "policy": {"name": "h2o", "heavy_tokens": 6, "recent_tokens": 4}},
    {"first_layer": -1, "policy": "none"},
]


def test_every_layer_has_the_policy_of_its_range() -> None:
    policy = ByLayer(ranges=RANGES)
    names = [getattr(policy.of_layer(layer, 8), "name", None) for layer in range(8)]
    assert names == [None, "snapkv", "snapkv", "snapkv", "h2o", "h2o", "h2o", None]
    assert policy.acts_on(8) == range(1, 7)
    assert policy.decodes()
    for layer in (2, 5):
        own = policy.of_layer(layer, 8)
        view = random_view([30, 18], policy=own, layer=layer)
        together, apart = policy.after_prefill(view), own.after_prefill(replace(view, memory={}))
        assert torch.equal(together.keep, apart.keep)


def test_the_runner_gives_each_layer_what_its_policy_gives_alone() -> None:
    model, inputs = llava(sharp=2.0), {"input_ids": prompt(36, 4, 6), "pixel_values": pixels()}
    packed = {"name": "adakv", "base": {"name": "snapkv", "keep_tokens": 12}}
    ranges = [{"policy": packed}, {"first_layer": 3, "policy": {"name": "vlcache", "keep_ratio": 0.5}},
              {"first_layer": 6, "policy": {"name": "tova", "keep_tokens": 10}}]  # fmt: skip
    with Pipeline(cache={"name": "by_layer", "ranges": ranges}).attach(model) as trace:
        out = generate(model, 4, **inputs)
    lengths = [int(layer) if float(layer).is_integer() else layer for layer in trace.last.cache_lengths]
    assert lengths[:3] == [15] * 3
    assert lengths[6:] == [10] * 2
    assert all(4 < length < 46 + 3 for length in lengths[3:6])
    layers = cache_in(out).layers
    assert any(layer.packed is not None for layer in layers[:3])
    assert all(layer.packed is None for layer in layers[3:])


def test_refuses_in_one_line_and_names_the_field() -> None:
    with pytest.raises(ConfigurationError, match=r"ranges\[1\].*keep_ratio"):
        Pipeline(cache={"name": "by_layer", "ranges": [{}, {"policy": {"name": "snapkv", "keep_ratio": 2}}]})
    with pytest.raises(ValidationError, match="ranges"):
        ByLayer(ranges=[])
    with pytest.raises(CompatibilityError, match=r"ranges\.first_layer=9 lies beyond"):
        ByLayer(ranges=[{"first_layer": 9, "policy": "tova"}]).acts_on(8)
