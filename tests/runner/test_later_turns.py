"""New images in later turns on a compressed cache, against the whole conversation at full length in which nothing is removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.families import families
from tests.runner.conversation import answer, converse, reference, whole
from tests.tiny_models import llava, pixels, prompt
from tokcomp import Pipeline

UNIFORM = {"name": "uniform", "keep_ratio": 0.5}
FASTV = {"name": "fastv", "layer": 2, "keep_ratio": 0.5}
FILTER = {"name": "mustdrop", "layers": (1, 2), "global_threshold": 0.03, "individual_threshold": 0.1}
SNAPKV = {"name": "snapkv", "keep_ratio": 0.6, "window": 3}
PIPELINES = {
    "uniform, positions kept": Pipeline(vision={**UNIFORM, "positions": "keep"}),
    "fastv": Pipeline(prefill=FASTV),
    "pyramiddrop": Pipeline(prefill="pyramiddrop"),
    "snapkv": Pipeline(cache=SNAPKV),
    "h2o": Pipeline(cache={"name": "h2o", "heavy_tokens": 8, "recent_tokens": 6}),
    "h2o, hiding": Pipeline(cache={"name": "h2o", "heavy_tokens": 8, "recent_tokens": 6, "eviction": "mask"}),
    "adakv": Pipeline(cache={"name": "adakv", "base": SNAPKV}),
    "mustdrop cache": Pipeline(prefill=FILTER, cache="mustdrop"),
    "all stages": Pipeline(UNIFORM, {**FASTV, "positions": "renumber"}, {"name": "h2o", "heavy_tokens": 6, "recent_tokens": 6}),
}  # fmt: skip
KINDS = ("llava", "llava_next", "internvl", "gemma3", "paligemma", "qwen2_vl", "qwen3_vl")
MUSTDROP = Pipeline({"name": "mustdrop", "threshold": 0.6, "merge_layer": 1, "order": "image"}, FILTER, "mustdrop")


def same(family: str, pipeline: Pipeline, attention: str = "sdpa", turns: Sequence[Any] = ()) -> None:
    one = families()[family]
    model = one.model(attention)
    turns = turns or [one.sample(1, 0), answer(3, 1), one.sample(2, 2), answer(2, 3), one.sample(1, 4), answer(2, 4)]
    with pipeline.attach(model) as trace, torch.no_grad():
        heard = converse(model, turns, trace)
    assert len(trace.requests) == sum(len(turn) > 1 for turn in turns)
    with torch.no_grad():
        expected = reference(model, whole(one, turns), heard, pipeline)
    for got, want in zip(heard, expected, strict=True):
        torch.testing.assert_close(got.hidden.masked_fill(want == 0, 0.0), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("name", PIPELINES)
def test_removing_equals_masking(family: str, name: str) -> None:
    same(family, PIPELINES[name])


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen3_vl"])
def test_all_of_mustdrop(family: str) -> None:
    same(family, MUSTDROP)


@pytest.mark.parametrize("name", ["all stages", "adakv"])
@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_5_vl"])
def test_eager_attention(family: str, name: str) -> None:
    same(family, PIPELINES[name], "eager")


@pytest.mark.parametrize("name", ["all stages", "adakv"])
@pytest.mark.parametrize("family", sorted({*KINDS} - {"paligemma"}))  # which reads text alone in both directions
def test_the_first_turn_may_be_text_alone(family: str, name: str) -> None:
    """It is read as without a pipeline; from the first image on its cache is compressed like any other."""
    sample, body = families()[family].sample, families()[family].model("sdpa").model
    if hasattr(body, "rope_deltas"):
        body.rope_deltas = None  # those of another conversation, by which the model would number the text
    turns = [answer(7, 1), answer(1, 2), sample(1, 2), answer(2, 3), answer(3, 4), sample(1, 4)]
    same(family, PIPELINES[name], turns=turns)


@pytest.mark.parametrize("name", ["all stages", "adakv"])
@pytest.mark.parametrize("family", ["llava_next_video", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "glm4v"])
def test_a_video_in_a_later_turn(family: str, name: str) -> None:
    one = families()[family]
    assert one.video is not None
    first = one.video(0) if family == "glm4v" else one.sample(1, 0)  # which has one placeholder for both
    same(family, PIPELINES[name], turns=[first, answer(3, 1), one.video(1), answer(2, 3)])


# -- what a policy decides in a later turn, by hand: the first layer's attention is that of the embeddings ----------------


def weights(model: Any, states: Tensor, held: list[list[int]], start: int) -> Tensor:
    """Attention of the first layer's rows from ``start`` on ``[g, r, t, l]``: they see themselves and what the heads hold."""
    layer, length = model.model.language_model.layers[0], states.shape[0]
    attention, normed = layer.self_attn, layer.input_layernorm(states)[None]
    cos, sin = model.model.language_model.rotary_emb(normed, torch.arange(length)[None])

    def rotated(x: Tensor) -> Tensor:
        heads = x.view(length, -1, attention.head_dim).transpose(0, 1)
        half = torch.cat([-heads[..., attention.head_dim // 2 :], heads[..., : attention.head_dim // 2]], dim=-1)
        return heads * cos[0] + half * sin[0]

    query, key = rotated(attention.q_proj(normed)[0]), rotated(attention.k_proj(normed)[0])
    groups = query.shape[0] // key.shape[0]
    out = []
    for g in range(key.shape[0]):
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        seen[start:, :start] = False
        seen[start:, held[g] if held else []] = True
        logits = query[g * groups : (g + 1) * groups] @ key[g].T * attention.head_dim**-0.5
        out.append(logits.masked_fill(~seen, -torch.inf).softmax(dim=-1)[:, start:])
    return torch.stack(out)


def first_layers(pipeline: Pipeline) -> tuple[Any, list[Tensor], list[list[list[int]]]]:
    """The model, the states of two image turns together, and what the first layer's heads hold after each."""
    model = llava(sharp=2.0)
    turns = [{"input_ids": prompt(36, 4, 6), "pixel_values": pixels()},
             {"input_ids": prompt(36, 3, 5, seed=2), "pixel_values": pixels(seed=3)}]  # fmt: skip
    with pipeline.attach(model) as trace, torch.no_grad():
        heard = converse(model, turns, trace)
    return model, [turn.first for turn in heard], [turn.held[0] for turn in heard]


@torch.no_grad()
def test_the_sums_of_h2o_go_on() -> None:
    heavy, recent = 10, 6
    model, states, held = first_layers(Pipeline(cache={"name": "h2o", "heavy_tokens": heavy, "recent_tokens": recent}))
    sums: dict[int, dict[int, float]] = {0: {}, 1: {}}
    start, before = 0, []
    for turn in range(2):
        received = weights(model, torch.cat(states[: turn + 1]), before, start).sum(dim=(1, 2))  # (g, l)
        end = received.shape[1]
        for g in range(2):
            present = [*(before[g] if before else []), *range(start, end)]
            sums[g] = {column: sums[g].get(column, 0.0) + float(received[g, column]) for column in present}
            old = sorted(present[:-recent], key=lambda column, g=g: -sums[g][column])[:heavy]
            assert held[turn][g] == sorted([*old, *present[-recent:]])
            sums[g] = {column: sums[g][column] for column in held[turn][g]}
        start, before = end, held[turn]


@torch.no_grad()
def test_snapkv_chooses_among_the_entries_of_the_new_turn() -> None:
    policy = {"name": "snapkv", "keep_tokens": 20, "window": 4, "kernel": 1}
    model, states, held = first_layers(Pipeline(cache=policy))
    received = weights(model, torch.cat(states), held[0], 46)[:, :, -4:].sum(dim=(1, 2))
    for g in range(2):
        best = received[g, 46:-4].topk(16).indices + 46
        assert held[1][g] == [*held[0][g], *sorted(best.tolist()), *range(46 + 40, 46 + 44)]
        assert len(held[0][g]) == 20
