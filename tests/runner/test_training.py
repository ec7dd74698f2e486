"""Fine-tuning with compression on: gradients flow through the tokens that stay, and only through them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.models.families import families, models
from tests.tiny_models import IMAGE, llava, pixels, prompt
from tokcomp import Pipeline
from tokcomp.errors import UnsupportedError

PIPELINES = {
    "a pruning reducer and a filter": Pipeline({"name": "uniform", "keep_tokens": 12},
                                               {"name": "fastv", "layer": 2, "keep_tokens": 6}),
    "merging inside the tower": Pipeline({"name": "tome", "r": 4}),
    "merging windows, ragged filters": Pipeline({"name": "mustdrop", "threshold": 0.6, "merge_layer": 1},
                                                {"name": "mustdrop", "layers": (0, 2), "global_threshold": 0.03,
                                                 "individual_threshold": 0.05}),
    "pooling after the projector": Pipeline("pool"),
}  # fmt: skip


@pytest.mark.parametrize("name", PIPELINES)
def test_the_loss_falls_and_the_tower_learns(name: str) -> None:
    model = llava(sharp=1.0, layers=4).train()
    ids = prompt(36, 4, 6)
    labels = ids.masked_fill(ids == IMAGE, -100)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    before = model.model.vision_tower.embeddings.patch_embedding.weight.detach().clone()
    losses = []
    with PIPELINES[name].attach(model) as trace:
        for _ in range(6):
            loss = model(input_ids=ids, pixel_values=pixels(), labels=labels, use_cache=False).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
    assert trace.last.after_vision[0] < 36 or len(trace.last.kept[-1][0]) < 36
    assert all(bool(torch.isfinite(each.grad).all()) for each in model.parameters() if each.grad is not None)
    assert losses[-1] < losses[0] - 0.5
    assert not torch.equal(model.model.vision_tower.embeddings.patch_embedding.weight, before)


def test_gradients_reach_the_features_of_kept_tokens_only() -> None:
    model = llava(sharp=1.0, layers=4).train()
    features: list[torch.Tensor] = []
    handle = model.model.multi_modal_projector.linear_1.register_forward_pre_hook(
        lambda module, args: features.append(args[0]) or args[0].retain_grad()
    )
    with Pipeline("fastervlm").attach(model) as trace:
        model(input_ids=prompt(36, 4, 6), pixel_values=pixels(), use_cache=False).logits[0, -1].sum().backward()
    handle.remove()
    before = model.model.vision_tower.embeddings.position_embedding.weight.grad
    assert bool((features[0].grad.abs().sum(dim=-1) > 0).all())
    assert features[0].shape[1] == trace.last.after_vision[0] < 36
    assert before is not None


AGAIN = {
    "llava, merging in blocks": ("llava", Pipeline({"name": "tome", "r": 2}, {"name": "fastv", "layer": 2, "keep_ratio": 0.5})),
    "llava, windows and key tokens": ("llava", Pipeline({"name": "mustdrop", "threshold": 0.6, "merge_layer": 1},
                                                        {"name": "pyramiddrop", "layers": (1, 2, 3)})),
    "qwen2.5-vl, weighed attention": ("qwen2_5_vl", Pipeline({"name": "tome", "r": 2})),
    "qwen3-vl, deepstack": ("qwen3_vl", Pipeline("fastervlm", {"name": "fastv", "layer": 1, "keep_ratio": 0.5})),
    "gemma3, blocks and windows": ("gemma3", Pipeline("uniform", {"name": "fastv", "layer": 2, "keep_ratio": 0.5})),
}  # fmt: skip


def checkpoint(model: Any, reentrant: bool = False) -> None:
    """Switch gradient checkpointing on; transformers 5.24 has a new name for it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", AGAIN)
def test_gradient_checkpointing_gives_the_same_gradients(name: str, reentrant: bool) -> None:
    """Layers are computed twice, on the tokens that they had: no decision is taken again."""
    family, pipeline = AGAIN[name]
    model = copy.deepcopy(models(family)).train()
    sample = families()[family].sample(2, 0)
    labels = sample["input_ids"].masked_fill(sample["input_ids"] > 190, -100)
    ran: list[int] = []
    model.get_decoder().layers[-1].input_layernorm.register_forward_hook(lambda module, args, out: ran.append(1))

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        ran.clear()
        with pipeline.attach(model) as trace:
            model(**sample, labels=labels).loss.backward()
            assert len(trace.last.kept[-1][0]) < trace.last.image_tokens[0]
        return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}

    expected = gradients()
    assert len(ran) == 1
    checkpoint(model, reentrant)
    if reentrant:
        model.enable_input_require_grads()
    again = gradients()
    assert len(ran) == 2
    assert model.get_decoder().layers[0].gradient_checkpointing
    assert again.keys() == expected.keys()
    for parameter, gradient in again.items():
        torch.testing.assert_close(gradient, expected[parameter], atol=1e-5, rtol=1e-4)


def test_what_checkpointing_rules_out() -> None:
    model = llava().train()
    sample = {"input_ids": prompt(36, 4, 6), "pixel_values": pixels()}
    with Pipeline("uniform").attach(model):
        checkpoint(model)
        with pytest.raises(UnsupportedError, match="switch it on before attaching"):
            model(**sample)
    with (
        Pipeline("uniform", cache="h2o").attach(model),
        pytest.raises(UnsupportedError, match="no cache for cache policy 'h2o'"),
    ):
        model(**sample)
    with Pipeline("uniform", cache="h2o").attach(model.eval()) as trace, torch.no_grad():
        model(**sample)
    assert trace.last.after_vision[0] < 36
