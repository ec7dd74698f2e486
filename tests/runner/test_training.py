"""Fine-tuning with compression on: gradients flow through the tokens that stay, and only through them."""

from __future__ import annotations

import pytest
import torch

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


@pytest.mark.parametrize("part", ["language_model", "vision_tower"])
def test_gradient_checkpointing_is_refused(part: str) -> None:
    """Layers that run a second time in the backward pass would meet another state."""
    model = llava().train()
    body = model.model
    for layer in body.language_model.layers if part == "language_model" else body.vision_tower.encoder.layers:
        layer.gradient_checkpointing = True  # what activation_checkpointing_enable() sets
    with Pipeline("uniform", "fastv").attach(model), pytest.raises(UnsupportedError, match="gradient checkpointing"):
        model(input_ids=prompt(36, 4, 6), pixel_values=pixels(), use_cache=False)
    with Pipeline("uniform").attach(model.eval()):
        model(input_ids=prompt(36, 4, 6), pixel_values=pixels(), use_cache=False)
