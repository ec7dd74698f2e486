"""An independent check of the runner: a full-length run in which nothing is removed, but dropped tokens are masked out of
attention and positions are set as declared, gives the same hidden states for the tokens that were kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_models import IMAGE, llava, pixels, prompt
from tokcomp import Pipeline

PIPELINES = {
    "uniform": Pipeline(vision={"name": "uniform", "keep_tokens": 17}),
    "fastv": Pipeline(prefill={"name": "fastv", "layer": 2, "keep_tokens": 9}),
    "mustdrop": Pipeline(prefill={"name": "mustdrop", "layers": (1, 3, 5), "global_threshold": 0.03,
                                  "individual_threshold": 0.1}),
    "random": Pipeline(prefill={"name": "random", "layer": 3, "keep_tokens": 5}),
    "uniform+fastv": Pipeline({"name": "uniform", "keep_tokens": 17}, {"name": "fastv", "layer": 3, "keep_ratio": 0.4}),
    "uniform+mustdrop": Pipeline({"name": "uniform", "keep_tokens": 20},
                                 {"name": "mustdrop", "layers": (2, 4), "global_threshold": 0.05, "individual_threshold": 0.1}),
    "uniform, positions kept": Pipeline({"name": "uniform", "keep_tokens": 17, "positions": "keep"},
                                        {"name": "fastv", "positions": "renumber"}),
}  # fmt: skip


def naive(model: Any, ids: Tensor, image: Tensor, kept: list[Tensor], pipeline: Pipeline) -> Tensor:
    """Last hidden states ``[l, d]`` of the uncompressed columns, masked layer by layer."""
    body, decoder = model.model, model.model.language_model
    columns = (ids[0] == IMAGE).nonzero()[:, 0]
    features = torch.cat(body.get_image_features(pixel_values=image, return_dict=True).pooler_output)
    hidden = body.get_input_embeddings()(ids).masked_scatter((ids == IMAGE)[..., None], features)
    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    position = torch.arange(length)
    numbered = None
    for layer, tokens in zip(decoder.layers, kept, strict=True):
        alive = torch.ones(length, dtype=torch.bool)
        alive[columns] = False
        alive[columns[tokens]] = True
        if numbered is None or not torch.equal(alive, numbered):
            stage = pipeline.vision if numbered is None else pipeline.prefill
            if stage is not None and stage.positions == "renumber" and not bool(alive.all()):
                position = (alive.long().cumsum(0) - 1).clamp(min=0)
            numbered = alive
        visible = (causal & alive) | torch.eye(length, dtype=torch.bool)
        rotary = decoder.rotary_emb(hidden, position_ids=position[None])
        hidden = layer(hidden, attention_mask=visible[None, None], position_embeddings=rotary)
    return decoder.norm(hidden)[0][numbered]


@pytest.mark.parametrize("name", PIPELINES)
@torch.no_grad()
def test_removing_equals_masking(name: str) -> None:
    model, pipeline = llava(sharp=2.0), PIPELINES[name]
    ids, image = prompt(36, 4, 6), pixels()
    hidden: list[Tensor] = []
    with pipeline.attach(model) as trace:
        handle = model.model.language_model.norm.register_forward_hook(lambda m, a, out: hidden.append(out))
        model(input_ids=ids, pixel_values=image)
        handle.remove()
    kept = [layer[0] for layer in trace.last.kept]
    assert len(kept[-1]) < 36
    torch.testing.assert_close(hidden[0][0], naive(model, ids, image, kept, pipeline), atol=1e-4, rtol=0)


@torch.no_grad()
def test_logits_stand_in_the_columns_of_the_ids() -> None:
    model = llava(sharp=2.0)
    ids, image = prompt(36, 4, 6), pixels()
    columns = (ids[0] == IMAGE).nonzero()[:, 0]
    with Pipeline(prefill={"name": "fastv", "layer": 2, "keep_tokens": 9}).attach(model) as trace:
        logits = model(input_ids=ids, pixel_values=image).logits[0]
    gone = torch.ones(36, dtype=torch.bool)
    gone[trace.last.kept[-1][0]] = False
    assert bool((logits[columns[gone]] == 0).all())
    assert bool((logits[columns[~gone]] != 0).any(dim=-1).all())
    assert bool((logits[ids[0] != IMAGE] != 0).any(dim=-1).all())
