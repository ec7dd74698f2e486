"""Decoders whose layers see only a window, mix windows with full attention, have several rotary tables, cap their logits or
rotate part of a head: dropping tokens equals masking them out of a full-length run in which each layer keeps its own
window over the *uncompressed* sequence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.runner.naive import run_masked, visible
from tests.tiny_decoders import DECODERS, LAYERS, WINDOW, implementation, language_model, llava_with
from tests.tiny_models import IMAGE, batch, cached, generate, pixels, prompt
from tokcomp import Pipeline
from tokcomp.errors import UnsupportedError
from tokcomp.models.adapter import find_adapter
from tokcomp.runner.arguments import cache_in

STEPS = 4

PIPELINES = {
    "filter": Pipeline(prefill={"name": "random", "layer": 1, "keep_tokens": 12}),
    "filter, renumbered": Pipeline(prefill={"name": "fastv", "layer": 2, "keep_tokens": 9, "positions": "renumber"}),
    "reducer": Pipeline(vision={"name": "uniform", "keep_tokens": 17, "positions": "keep"}),
    "both": Pipeline({"name": "uniform", "keep_tokens": 17}, {"name": "fastv", "layer": 2, "keep_tokens": 7}),
}


def decode(
    model: Any, inputs: dict[str, Any], steps: int, seen: list[list[Tensor]] | None = None
) -> tuple[Tensor, Tensor]:
    """Greedy token by token: the sequence ``[1, l]`` and the logits ``[1 + steps, v]`` after the prompt and each step;
    ``seen`` takes, before every step, each layer's cached columns ``[g, m]``."""
    with torch.no_grad():
        out = model(**inputs, use_cache=True)
        ids, logits = inputs["input_ids"], [out.logits[0, -1]]
        for _ in range(steps):
            cache = cache_in(out)
            if seen is not None:
                seen.append([layer.full_index()[0].clone() for layer in cache.layers])
            following = logits[-1].argmax()[None, None]
            ids = torch.cat([ids, following], dim=1)
            out = model(input_ids=following, use_cache=True, **cached(model, cache))
            logits.append(out.logits[0, -1])
    return ids, torch.stack(logits)


def policy_masks(decoder: Any, length: int, prompt_length: int, seen: list[list[Tensor]]) -> list[Tensor]:
    """Per layer ``[h, l, l]``: the model's own rule, and in the decoded rows only what was cached before the step."""
    masks = []
    heads = decoder.config.num_attention_heads
    for number in range(LAYERS):
        mask = visible(length, decoder.window(number)).repeat(heads, 1, 1)
        for step, layers in enumerate(seen):
            index = layers[number]
            for head in range(heads):
                held = torch.zeros(length, dtype=torch.bool)
                held[index[head * len(index) // heads]] = True
                held[prompt_length + step] = True
                mask[head, prompt_length + step] &= held
        masks.append(mask)
    return masks


@pytest.mark.parametrize("policy", [
    {"name": "h2o", "heavy_tokens": 6, "recent_tokens": 5},
    {"name": "streaming_llm", "sinks": 2, "recent_tokens": 8, "positions": "keep"},
], ids=["h2o", "streaming_llm"])  # fmt: skip
@pytest.mark.parametrize("name", DECODERS)
def test_evicting_equals_masking(name: str, policy: dict[str, Any]) -> None:
    model = language_model(name)
    decoder = find_adapter(model).decoder
    inputs = {"input_ids": prompt(0, 24, 0)}
    seen: list[list[Tensor]] = []
    with Pipeline(cache=policy).attach(model):
        ids, logits = decode(model, inputs, STEPS, seen)
    masks = policy_masks(decoder, ids.shape[1], 24, seen)
    expected = run_masked(model, decoder, {"input_ids": ids}, masks)
    torch.testing.assert_close(logits, expected[23:], atol=1e-4, rtol=0)
    assert max(index.shape[-1] for index in seen[-1]) <= 11


@pytest.mark.parametrize("name", DECODERS)
def test_a_policy_that_keeps_everything_changes_nothing(name: str) -> None:
    """Layers with a window let go of what it has passed, as the model's own cache does, and of nothing else."""
    model = language_model(name)
    inputs = {"input_ids": prompt(0, 12, 0)}
    ids, dense = decode(model, inputs, 8)
    with Pipeline(cache={"name": "random", "keep_ratio": 1.0}).attach(model):
        seen: list[list[Tensor]] = []
        again, logits = decode(model, inputs, 8, seen)
    assert torch.equal(ids, again)
    torch.testing.assert_close(logits, dense, atol=1e-4, rtol=0)
    for number, index in enumerate(seen[-1]):
        window = find_adapter(model).decoder.window(number)
        assert index.shape[-1] == (19 if window is None else WINDOW - 1)


@pytest.mark.parametrize("name", DECODERS)
def test_received_attention_is_that_of_the_layer(name: str) -> None:
    """What H2O adds up, column by column, equals the sums of the attention maps that the eager model gives out."""
    model = language_model(name, attention="eager")
    ids = prompt(0, 20, 0)
    with torch.no_grad():
        maps = model(input_ids=ids, output_attentions=True, use_cache=False).attentions
    with Pipeline(cache={"name": "h2o", "heavy_tokens": 99, "recent_tokens": 99}).attach(model), torch.no_grad():
        layers = cache_in(model(input_ids=ids, use_cache=True)).layers
    for layer, attention in zip(layers, maps, strict=True):
        (received,) = layer.memory.values()
        heads = received.shape[1]
        sums = attention[0].sum(dim=1).view(heads, -1, 20).sum(dim=1)
        torch.testing.assert_close(received[0], sums[:, -received.shape[-1] :], atol=1e-4, rtol=0)


def vision_masks(
    decoder: Any, ids: Tensor, kept: list[Tensor], pipeline: Pipeline
) -> tuple[list[Tensor], list[Tensor]]:
    """Per layer the mask ``[l, l]`` and the positions ``[l]`` in which dropped image tokens are not seen."""
    length, columns = ids.shape[1], (ids[0] == IMAGE).nonzero()[:, 0]
    masks, positions, position, before = [], [], torch.arange(length), torch.ones(length, dtype=torch.bool)
    for number in range(LAYERS):
        alive = torch.ones(length, dtype=torch.bool)
        alive[columns] = False
        alive[columns[kept[number]]] = True
        if not torch.equal(alive, before):
            stage = pipeline.vision if number == 0 else pipeline.prefill
            if stage is not None and stage.positions == "renumber":
                position = (alive.long().cumsum(0) - 1).clamp(min=0)
        before = alive
        masks.append(visible(length, decoder.window(number)) & alive)
        positions.append(position)
    return masks, positions


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("name", DECODERS)
def test_dropping_equals_masking(name: str, pipeline: str) -> None:
    model = llava_with(name)
    decoder = find_adapter(model).decoder
    inputs = {"input_ids": prompt(36, 3, 5), "pixel_values": pixels()}
    with PIPELINES[pipeline].attach(model) as trace:
        ids, logits = decode(model, inputs, STEPS)
    kept = [layer[0] for layer in trace.last.kept]
    masks, positions = vision_masks(decoder, ids, kept, PIPELINES[pipeline])
    expected = run_masked(model, decoder, {**inputs, "input_ids": ids}, masks, positions)
    torch.testing.assert_close(logits, expected[43:], atol=1e-4, rtol=0)
    assert len(kept[-1]) < 36


@pytest.mark.parametrize("name", [name for name in DECODERS if "sliding" in str(DECODERS[name]) or "window" in name])
def test_a_batch_gives_what_its_samples_give(name: str) -> None:
    model = llava_with(name)
    rows = [{"input_ids": prompt(36, 4, 6), "pixel_values": pixels(seed=1)},
            {"input_ids": prompt(36, 2, 11, seed=1), "pixel_values": pixels(seed=2)}]  # fmt: skip
    both = {
        **batch(*(row["input_ids"] for row in rows)),
        "pixel_values": torch.cat([row["pixel_values"] for row in rows]),
    }
    pipeline = Pipeline({"name": "mustdrop", "threshold": 0.6, "merge_layer": 0, "key_layer": 1},
                        {"name": "fastv", "layer": 2, "keep_ratio": 0.4},
                        {"name": "h2o", "heavy_tokens": 8, "recent_tokens": 5})  # fmt: skip
    with pipeline.attach(model):
        whole = generate(model, 3, **both)
        alone = [generate(model, 3, **row) for row in rows]
    for i, one in enumerate(alone):
        for step in range(3):
            torch.testing.assert_close(whole.logits[step][i], one.logits[step][0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", DECODERS)
def test_a_later_turn_of_several_tokens_equals_them_one_by_one(name: str) -> None:
    model = llava_with(name)
    inputs = {"input_ids": prompt(36, 3, 5), "pixel_values": pixels()}
    later = prompt(0, 12, 0, seed=5)
    with PIPELINES["both"].attach(model), torch.no_grad():
        first = model(**inputs, use_cache=True)
        at_once = model(input_ids=later, use_cache=True, **cached(model, cache_in(first))).logits
        first = model(**inputs, use_cache=True)
        cache = cache_in(first)
        single = [
            model(input_ids=later[:, i : i + 1], use_cache=True, **cached(model, cache)).logits for i in range(12)
        ]
    torch.testing.assert_close(at_once, torch.cat(single, dim=1), atol=1e-4, rtol=0)


def test_beams_follow_their_windows() -> None:
    model = llava_with("gemma3, two rotary tables")
    inputs = {"input_ids": prompt(36, 3, 5), "pixel_values": pixels()}
    with PIPELINES["both"].attach(model):
        out = generate(model, 14, **inputs, num_beams=3, output_scores=True)
        # Teacher-forced, the best beam has the score that beam search gave it.
        with torch.no_grad():
            logits = model(input_ids=out.sequences[:, :-1], pixel_values=inputs["pixel_values"]).logits[0, 43:]
    score = logits.log_softmax(dim=-1).gather(1, out.sequences[0, 44:, None]).sum() / 14
    torch.testing.assert_close(score, out.sequences_scores[0], atol=1e-3, rtol=0)


@pytest.mark.parametrize(("change", "words"), [
    ({"layer_types": ["chunked_attention"] * LAYERS}, "chunked_attention"),
    ({"num_kv_shared_layers": 2}, "share the cache"),
    ({"is_causal": False}, "both directions"),
])  # fmt: skip
def test_other_kinds_of_attention_are_refused(change: dict[str, Any], words: str) -> None:
    model = language_model("llama")
    for field, value in change.items():
        setattr(model.config, field, value)
    with pytest.raises(UnsupportedError, match=words), Pipeline(cache="h2o").attach(model):
        pass


def test_flash_attention_over_a_window_with_gaps_is_refused() -> None:
    from tokcomp.runner.masks import Visibility, layer_mask

    columns = torch.tensor([[[0, 1, 7, 8, 9, 10]]])
    sees = Visibility(6, window=4, columns=columns)
    with pytest.raises(UnsupportedError, match="attn_implementation='sdpa'"):
        layer_mask("flash_attention_2", 1, sees, heads=4, dtype=torch.float32, device=columns.device)
    assert sees.last(1, columns.device)[0, 0, 0].tolist() == [False, False, True, True, True, True]
    assert implementation("llama") == "sdpa"
