"""Language models whose layers lie on several devices: the answer is that of one device, and no operation mixes two."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.families import families, models
from tests.support.pretend import HOME, PretendDevices
from tests.tiny_models import cached, generate, llava
from tokcomp import Pipeline
from tokcomp.errors import UnsupportedError
from tokcomp.models.adapter import find_adapter

accelerate = pytest.importorskip("accelerate")

THERE = torch.device("cpu", 1)
TOME = {"name": "tome", "r": 2}
RAGGED = {"name": "mustdrop", "layers": (0, 2), "global_threshold": 0.03, "individual_threshold": 0.05}
PIPELINES: dict[str, tuple[str, dict[str, Any]]] = {
    "a filter in front of the border": ("llava", {"prefill": {"name": "fastv", "layer": 2, "keep_ratio": 0.5}}),
    "a filter at the border": ("llava", {"prefill": {"name": "fastv", "layer": 3, "keep_ratio": 0.5}}),
    "ragged filters on both sides": ("llava", {"vision": "uniform", "prefill": RAGGED}),
    "merging": ("llava", {"prefill": {"name": "sparsevlm", "layers": (1, 3), "keep_ratios": (0.6, 0.4)}}),
    "the next layer's projections": ("llava", {"prefill": {"name": "pyramiddrop", "layers": (2, 3, 4)}}),
    "sums of attention": ("llava", {"vision": "uniform", "cache": {"name": "h2o", "heavy_tokens": 8, "recent_tokens": 6}}),
    "keys turned anew": ("llava", {"cache": {"name": "streaming_llm", "recent_tokens": 10}}),
    "the tokens that survive": ("llava", {"prefill": "fastv", "cache": {"name": "mustdrop"}}),
    "budgets by a survey": ("llava", {"cache": "pyramidkv"}),
    "heads of different lengths": ("llava", {"cache": "adakv"}),
    "planes of positions": ("qwen2_5_vl", {"vision": TOME, "prefill": RAGGED,
                                           "cache": {"name": "streaming_llm", "recent_tokens": 10}}),
    "deepstack": ("qwen3_vl", {"vision": "uniform", "prefill": {"name": "fastv", "layer": 1, "keep_ratio": 0.5}}),
    "blocks and windows": ("gemma3", {"prefill": {"name": "fastv", "layer": 2, "keep_ratio": 0.5}}),
    "a budget per image": ("qwen2_5_vl", {"prefill": {"name": "fastv", "layer": 3, "keep_ratio": 0.5, "budget_per": "image"}}),
}  # fmt: skip


class Bring(accelerate.hooks.ModelHook):  # type: ignore[misc]
    """What accelerate's own hook does for weights that are in their place: it brings the inputs there."""

    def __init__(self, device: torch.device) -> None:
        self.execution_device = device

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        skip = ["cache", "past_key_values"]
        moved = accelerate.utils.send_to_device(args, self.execution_device)
        return moved, accelerate.utils.send_to_device(kwargs, self.execution_device, skip_keys=skip)


def split(model: Any, home: torch.device, there: torch.device, place: Callable[[Any, torch.device], Any]) -> Any:
    """The layers from the fourth on, and the norm behind them, lie and compute on another device."""
    model = copy.deepcopy(model)
    place(model, home)
    decoder = find_adapter(model).decoder
    apart = (*decoder.layers[3:], decoder.module.norm)
    for module in (model, *decoder.layers, decoder.module.norm, model.lm_head):
        device = there if any(module is other for other in apart) else home
        accelerate.hooks.add_hook_to_module(module, Bring(device))
        if device == there:
            place(module, there)
    return model


def answer(model: Any, pipeline: Pipeline, inputs: dict[str, Any], following: Tensor) -> tuple[list[Tensor], Any]:
    """Logits of an answer and of a later turn on its cache, and what the trace says."""
    with pipeline.attach(model) as trace, torch.no_grad():
        out = generate(model, 3, **inputs)
        kept, cache = trace.last.kept[-1], out.get("cache", out.get("past_key_values"))
        later = model(input_ids=following, use_cache=True, **cached(model, cache)).logits
        return [*out.logits, later], (kept, trace.last.cache_lengths)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_answer_is_that_of_one_device(name: str) -> None:
    family, stages = PIPELINES[name]
    whole, pipeline = models(family), Pipeline(**stages)
    recipe = families()[family]
    inputs, following = recipe.batch([recipe.sample(2, 0), recipe.sample(1, 1)]), torch.tensor([[7, 8], [9, 10]])
    expected, told = answer(whole, pipeline, inputs, following)
    devices = PretendDevices()
    divided = split(whole, HOME, THERE, devices.place)
    with devices:
        logits, found = answer(divided, pipeline, inputs, following)
    for mine, its in zip(logits, expected, strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=0)
    assert found[1] == told[1]
    assert all(torch.equal(mine, its) for mine, its in zip(found[0], told[0], strict=True))


def test_the_pretence_notices_two_devices() -> None:
    with PretendDevices():
        here, there = torch.ones(3), torch.ones(3, device=THERE)
        assert there.device == THERE != here.device
        with pytest.raises(RuntimeError, match="tensors on cpu, cpu:1"):
            here + there
        assert torch.equal(here + there.to(here.device), here * 2)


def test_a_tower_over_several_devices_is_refused_before_anything_runs() -> None:
    model = copy.deepcopy(llava())
    model.model.vision_tower.encoder.layers[2].to("meta")
    words = r"the vision tower with its projector is split over several devices \(cpu, meta\)"
    with pytest.raises(UnsupportedError, match=words), Pipeline("uniform").attach(model):
        pass
    with Pipeline().attach(model):
        pass  # nothing is compressed, so nothing is refused
