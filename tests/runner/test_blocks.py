"""Image tokens and prefixes that attend in both directions (Gemma 3, PaliGemma): what is left of a block stays one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SiglipVisionConfig,
)

from tests.runner.naive import run_masked, visible
from tests.tiny_models import cached, generate, pixels, roughen
from tokcomp import Pipeline
from tokcomp.models.adapter import find_adapter
from tokcomp.runner.arguments import cache_in

IMAGE, LAYERS, WINDOW, TOKENS = 199, 4, 9, 16
_SIZES = {"vocab_size": 200, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
          "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
          "pad_token_id": 0}  # fmt: skip
_HYBRID = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2)}


def _vision(side: int, **fields: Any) -> SiglipVisionConfig:
    return SiglipVisionConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=side,
                              patch_size=14, vision_use_head=False, **fields)  # fmt: skip


def gemma3() -> Any:
    config = Gemma3Config(vision_config=_vision(112), text_config=Gemma3TextConfig(**_SIZES, **_HYBRID), mm_tokens_per_image=16,
                          image_token_index=IMAGE, boi_token_index=197, eoi_token_index=198)  # fmt: skip
    return _ready(Gemma3ForConditionalGeneration, config)


def paligemma(windows: bool) -> Any:
    text = Gemma2Config(**_SIZES, **_HYBRID) if windows else GemmaConfig(**_SIZES)
    config = PaliGemmaConfig(vision_config=_vision(56, projection_dim=32), text_config=text, image_token_index=IMAGE,
                             projection_dim=32, hidden_size=32)  # fmt: skip
    config._attn_implementation = "eager" if windows else "sdpa"
    return _ready(PaliGemmaForConditionalGeneration, config)


def _ready(cls: Any, config: Any) -> Any:
    torch.manual_seed(0)
    model = cls(config).eval()
    roughen(model, 2.0)
    for name, parameter in model.named_parameters():
        if name.endswith("mm_input_projection_weight"):
            torch.nn.init.normal_(parameter, std=0.2)
    return model


MODELS = {"gemma3": gemma3, "paligemma": lambda: paligemma(False), "paligemma2": lambda: paligemma(True)}
PIPELINES = {
    "filter": Pipeline(prefill={"name": "random", "layer": 1, "keep_tokens": 7}),
    "filter, renumbered": Pipeline(prefill={"name": "fastv", "layer": 2, "keep_tokens": 5, "positions": "renumber"}),
    "reducer": Pipeline(vision={"name": "uniform", "keep_tokens": 9, "positions": "keep"}),
    "both": Pipeline({"name": "uniform", "keep_tokens": 9}, {"name": "random", "layer": 2, "keep_tokens": 4}),
}


def sample(name: str, seed: int = 0) -> dict[str, Any]:
    """An image between text; PaliGemma's image stands first, and its suffix is causal."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(3, 190, (8 + seed,), generator=generator).tolist()
    before = [] if name.startswith("pali") else text[:3]
    ids = torch.tensor([[*before, *[IMAGE] * TOKENS, *text[len(before) :]]])
    types = (ids == IMAGE).long()
    if name.startswith("pali"):
        types = torch.zeros_like(ids)
        types[:, -3:] = 1
    side = 56 if name.startswith("pali") else 112
    return {"input_ids": ids, "token_type_ids": types, "pixel_values": pixels(size=side, seed=seed)}


def blocks_of(name: str, inputs: dict[str, Any], length: int) -> Tensor:
    types = inputs["token_type_ids"][0]
    blocks = torch.full((length,), -1)
    blocks[: len(types)] = torch.where(types == (0 if name.startswith("pali") else 1), 0, -1)
    return blocks


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("name", MODELS)
def test_dropping_equals_masking(name: str, pipeline: str) -> None:
    model, inputs = MODELS[name](), sample(name)
    decoder = find_adapter(model).decoder
    with PIPELINES[pipeline].attach(model) as trace, torch.no_grad():
        out = model(**inputs, use_cache=True)
        ids, logits = inputs["input_ids"], [out.logits[0, -1]]
        for _ in range(3):
            following = logits[-1].argmax()[None, None]
            ids = torch.cat([ids, following], dim=1)
            out = model(input_ids=following, use_cache=True, **cached(model, cache_in(out)))
            logits.append(out.logits[0, -1])
    kept = [layer[0] for layer in trace.last.kept]
    assert len(kept[-1]) < TOKENS
    length, columns = ids.shape[1], (ids[0] == IMAGE).nonzero()[:, 0]
    masks, positions, before = [], [], torch.ones(length, dtype=torch.bool)
    position = torch.arange(length) + decoder.first_position
    for number in range(LAYERS):
        alive = torch.ones(length, dtype=torch.bool)
        alive[columns] = False
        alive[columns[kept[number]]] = True
        stage = PIPELINES[pipeline].vision if number == 0 else PIPELINES[pipeline].prefill
        if not torch.equal(alive, before) and stage is not None and stage.positions == "renumber":
            position = (alive.long().cumsum(0) - 1).clamp(min=0) + decoder.first_position
        before = alive
        seen = visible(length, decoder.window(number), blocks=blocks_of(name, inputs, length),
                       through=name.startswith("pali"))  # fmt: skip
        masks.append(seen & alive)
        positions.append(position)
    full = {
        **inputs,
        "input_ids": ids,
        "token_type_ids": torch.nn.functional.pad(inputs["token_type_ids"], (0, 3), value=1),
    }
    expected = run_masked(model, decoder, full, masks, positions)
    torch.testing.assert_close(torch.stack(logits), expected[length - 4 :], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_the_naive_masks_are_those_of_the_model(name: str) -> None:
    model, inputs = MODELS[name](), sample(name)
    decoder, length = find_adapter(model).decoder, inputs["input_ids"].shape[1]
    blocks = blocks_of(name, inputs, length)
    masks = [visible(length, decoder.window(i), blocks=blocks, through=name.startswith("pali")) for i in range(LAYERS)]
    with torch.no_grad():
        dense = model(**inputs).logits[0]
        with Pipeline().attach(model):
            assert torch.equal(model(**inputs).logits[0], dense)
    torch.testing.assert_close(run_masked(model, decoder, inputs, masks), dense, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_gives_what_its_samples_give(name: str) -> None:
    model, rows = MODELS[name](), [sample(name), sample(name, seed=3)]
    length = max(row["input_ids"].shape[1] for row in rows)

    def padded(field: str) -> Tensor:
        return torch.cat([torch.nn.functional.pad(row[field], (length - row[field].shape[1], 0)) for row in rows])

    both = {"input_ids": padded("input_ids"), "token_type_ids": padded("token_type_ids"),
            "attention_mask": (torch.arange(length) >= length - torch.tensor([[r["input_ids"].shape[1]] for r in rows])).long(),
            "pixel_values": torch.cat([row["pixel_values"] for row in rows])}  # fmt: skip
    pipeline = Pipeline({"name": "random", "keep_tokens": 9}, {"name": "random", "layer": 1, "keep_tokens": 5},
                        {"name": "h2o", "heavy_tokens": 6, "recent_tokens": 5})  # fmt: skip
    with pipeline.attach(model):
        whole = generate(model, 3, **both)
        alone = [generate(model, 3, **row) for row in rows]
    for i, one in enumerate(alone):
        for mine, ours in zip(one.logits, whole.logits, strict=True):
            torch.testing.assert_close(mine[0], ours[i], atol=1e-4, rtol=0)
