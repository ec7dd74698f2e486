"""The pipelines that are timed. On random weights thresholds mean nothing, so MustDrop's are set from the model at hand."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tokcomp import Pipeline
from tokcomp.models.adapter import find_adapter
from tokcomp.ops.pooling import window_members
from tokcomp.ops.similarity import mean_cosine

__all__ = ["mustdrop", "named_pipelines"]

# MustDrop's setting for 64 tokens leaves a mean of 64 of 576 at the layers' outputs; the tower's merge is taken to leave
# 320 of them (its headline agrees with 315), so three layers of 32 see 320 and the others the key tokens alone.
_MERGED_SHARE, _MEAN_SHARE = 320 / 576, 64 / 576


@torch.inference_mode()
def window_threshold(model: Any, pixel_values: Tensor, share: float, window: int = 3) -> float:
    """The similarity of windows at which merging leaves about ``share`` of the patches: a quantile over these images."""
    tower = find_adapter(model).tower
    assert tower is not None
    seen: list[Tensor] = []
    handle = tower.blocks[0].module.register_forward_hook(
        lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    try:
        tower.module(pixel_values[:1])
    finally:
        handle.remove()
    tokens = seen[0][:, tower.n_prefix :]
    side = math.isqrt(tokens.shape[1])
    patches = window_members((side, side), (window, window), device=tokens.device)
    scores = mean_cosine(tokens[:, patches]).flatten().sort(descending=True).values
    merging = round((1 - share) * tokens.shape[1] / (window**2 - 1))
    return float(scores[min(merging, len(scores) - 1)])


def mustdrop(model: Any, pixel_values: Tensor) -> dict[str, Any]:
    """MustDrop's three stages at about its setting for 64 of 576 tokens."""
    depth = len(find_adapter(model).decoder.layers)
    first = 2 * depth // 32 + 1  # layers that see all that the tower hands over
    key_share = (_MEAN_SHARE * depth - (first - 1) * _MERGED_SHARE) / (depth - first + 1) / _MERGED_SHARE
    threshold = window_threshold(model, pixel_values, _MERGED_SHARE)
    vision = {"name": "mustdrop", "threshold": threshold, "key_ratio": max(math.floor(1e3 * key_share) / 1e3, 0.01)}
    # Thresholds of 1 leave the key tokens alone, whatever the weights.
    prefill = {"name": "mustdrop", "global_threshold": 1.0, "individual_threshold": 1.0}
    return {"vision": vision, "prefill": prefill, "cache": "mustdrop"}


def named_pipelines(model: Any, pixel_values: Tensor) -> dict[str, Pipeline]:
    """Every strategy and preset that is timed, by name; the most important first."""
    must = mustdrop(model, pixel_values)
    return {
        "fastv (K=2, half)": Pipeline(prefill="fastv"),
        "fastv (K=2, a ninth)": Pipeline(prefill={"name": "fastv", "keep_ratio": 1 / 9}),
        "mustdrop (three stages)": Pipeline(**must),
        "h2o": Pipeline(cache="h2o"),
        "tome": Pipeline(vision="tome"),
        "fastervlm (a ninth)": Pipeline(vision={"name": "fastervlm", "keep_ratio": 1 / 9}),
        "none": Pipeline(),
        "tome+fastv+h2o": Pipeline(vision="tome", prefill="fastv", cache="h2o"),
        "mustdrop+h2o": Pipeline(**{**must, "cache": "h2o"}),
        "streaming_llm": Pipeline(cache="streaming_llm"),
        "uniform (a ninth)": Pipeline(vision={"name": "uniform", "keep_ratio": 1 / 9}),
    }
