"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and GLM-4V: packed towers, multimodal rotary positions, deep features, video."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor

from tests.models.packed_models import FAMILIES, IMAGE, VIDEO, model, prompt, together
from tests.runner.test_batches import spec
from tests.tiny_models import generate
from tokcomp import CACHE, PREFILL, VISION, Pipeline
from tokcomp.errors import CompatibilityError, FeatureError
from tokcomp.runner.arguments import cache_in, cache_name

GRID = (1, 8, 12)
TUNED = {
    "prefill/sparsevlm": {"layers": (1, 3), "keep_ratios": (0.6, 0.3)},
    "vision/mustdrop": {"threshold": 0.0, "merge_layer": 1, "window": 2},
    "prefill/mustdrop": {"layers": (1, 3), "global_threshold": 0.03, "individual_threshold": 0.05},
}


def settings(stage: str, name: str) -> dict[str, Any]:
    return {**spec(stage, name), **TUNED.get(f"{stage}/{name}", {})}


def samples(family: str) -> list[dict[str, Any]]:
    """Images of different grids, two in one prompt; the processor's patches."""
    return [
        prompt(4, ("image", GRID), 6, family=family, seed=1),
        prompt(2, ("image", (1, 4, 4)), 3, ("image", (1, 6, 8)), 5, family=family, seed=2),
        prompt(3, ("image", (1, 12, 4)), 2, family=family, seed=4),
    ]


def video(family: str, seed: int = 5) -> dict[str, Any]:
    return prompt(4, ("video", (3, 4, 8)), 5, family=family, seed=seed)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_none_is_bit_identical(family: str) -> None:
    made = model(family)
    for inputs, more in ((together(*samples(family)), {}), (video(family), {}), (samples(family)[1], {"num_beams": 2})):
        dense = generate(made, 3, **inputs, **more)
        with Pipeline().attach(made) as trace:
            attached = generate(made, 3, **inputs, **more)
        assert torch.equal(dense.sequences, attached.sequences)
        assert all(torch.equal(a, b) for a, b in zip(dense.logits, attached.logits, strict=True))
    assert trace.last.image_tokens[0] == 16


FAST = {("qwen2_5_vl", "vision"), ("qwen3_vl", "prefill")}
ALONE = [
    (stage, name) for stage, names in (("vision", VISION), ("prefill", PREFILL), ("cache", CACHE)) for name in names
]


def assert_same(made: Any, pipeline: Pipeline, rows: list[dict[str, Any]], steps: int = 3) -> Any:
    """A batch gives what its samples give one by one; returns the batch's record."""
    with pipeline.attach(made) as trace:
        whole = generate(made, steps, **together(*rows))
        batch = trace.last
        alone = [generate(made, steps, **row) for row in rows]
        records = iter(trace.requests[1:])
    for i, (one, row) in enumerate(zip(alone, rows, strict=True)):
        for step, logits in enumerate(one.logits):
            torch.testing.assert_close(logits[0], whole.logits[step][i], atol=1e-4, rtol=0)
        if "pixel_values" in row or "pixel_values_videos" in row:
            for layer, tensors in enumerate(next(records).kept):
                assert torch.equal(tensors[0], batch.kept[layer][i]), (i, layer)
    return batch


SWEPT = [
    pytest.param(
        family, *case, marks=pytest.mark.slow if (family, case[0]) not in FAST else (), id="-".join([family, *case])
    )
    for family in FAMILIES
    for case in ALONE
    # The cache stage knows nothing of towers: one decoder of each kind of rotation will do.
    if case[0] != "cache" or family in ("qwen3_vl", "glm4v")
]


@pytest.mark.parametrize(("family", "stage", "name"), SWEPT)
def test_a_batch_equals_its_samples(family: str, stage: str, name: str) -> None:
    if stage == "vision" and VISION[name].needs & {"cls_attention"} and VISION[name].without_cls == "refuse":
        with pytest.raises(CompatibilityError, match="has none"), Pipeline(vision=name).attach(model(family)):
            pass
        return
    batch = assert_same(model(family), Pipeline(**{stage: settings(stage, name)}), samples(family))
    left = batch.cache_lengths[-1] if stage == "cache" else batch.vision_tokens[-1]
    assert left[0] < (24 if stage != "cache" else 24 + 12 + 3) or name in ("pyramidkv", "mustdrop"), left


@pytest.mark.parametrize("family", FAMILIES)
def test_text_only_samples_and_videos_share_a_batch(family: str) -> None:
    rows = [prompt(9, family=family, seed=3), video(family), prompt(2, ("video", (2, 8, 4)), 3, family=family, seed=6)]
    if family != "glm4v":  # whose prompts hold images or videos
        rows.append(samples(family)[1])
    batch = assert_same(
        model(family), Pipeline({"name": "uniform", "keep_ratio": 0.5}, settings("prefill", "fastv")), rows
    )
    assert batch.image_tokens == (0, 24, 16, 16)[: len(rows)]
    assert batch.after_vision == (0, 12, 8, 8)[: len(rows)]


def numbers_in_words(positions: list[tuple[int, ...]], before: set[int], after: set[int]) -> list[tuple[int, ...]]:
    """Position values that no token has any more are closed up."""
    gone = {v for i in before for v in positions[i]} - {v for i in after for v in positions[i]}
    return [tuple(v - sum(g < v for g in gone) for v in planes) for planes in positions]


def naive(made: Any, inputs: dict[str, Any], said: Tensor, kept: list[Tensor], pipeline: Pipeline) -> Tensor:
    """Logits ``[l, vocabulary]`` of prompt and answer in one pass of full length, in which dropped tokens are masked."""
    body, decoder = made.model, made.model.language_model
    ids = torch.cat([inputs["input_ids"][0], said])[None]
    kinds = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(said)))
    vision = (ids[0] == IMAGE) | (ids[0] == VIDEO)
    kind = "video" if "video_grid_thw" in inputs else "image"
    pixels = inputs["pixel_values_videos" if kind == "video" else "pixel_values"]
    encoded = getattr(body, f"get_{kind}_features")(pixels, inputs[f"{kind}_grid_thw"], return_dict=True)
    hidden = body.get_input_embeddings()(ids).masked_scatter(
        vision[None, :, None], torch.cat(list(encoded.pooler_output))
    )
    deep = [torch.cat(list(layer)) for layer in getattr(encoded, "deepstack_features", [])]
    grids = {name: inputs[name] for name in ("image_grid_thw", "video_grid_thw") if name in inputs}
    planes, _ = body.get_rope_index(ids, mm_token_type_ids=kinds, **grids)
    positions = [tuple(column) for column in planes[:, 0].T.tolist()]
    columns = vision.nonzero()[:, 0]
    length = ids.shape[1]
    alive = set(range(length))
    for number, (layer, tokens) in enumerate(zip(decoder.layers, kept, strict=True)):
        now = set(range(length)) - set(columns.tolist()) | set(columns[tokens].tolist())
        stage = pipeline.vision if number == 0 else pipeline.prefill
        if now != alive and stage is not None and stage.positions == "renumber":
            positions = numbers_in_words(positions, alive, now)
        alive = now
        visible = torch.ones(length, length, dtype=torch.bool).tril()
        visible[:, [i for i in range(length) if i not in alive]] = False
        visible |= torch.eye(length, dtype=torch.bool)
        rotary = decoder.rotary_emb(hidden, torch.tensor(positions).T[:, None])
        hidden = layer(hidden, attention_mask=visible[None, None], position_embeddings=rotary)
        if number < len(deep):
            hidden = hidden.index_add(1, columns, deep[number][None])
    return made.lm_head(decoder.norm(hidden))[0]


PIPELINES = {
    "uniform": Pipeline({"name": "uniform", "keep_tokens": 7}),
    "uniform, positions kept": Pipeline({"name": "uniform", "keep_tokens": 7, "positions": "keep"}),
    "fastv": Pipeline(prefill={"name": "fastv", "layer": 1, "keep_tokens": 6}),
    "uniform+fastv renumbered": Pipeline({"name": "uniform", "keep_ratio": 0.6},
                                         {"name": "fastv", "layer": 2, "keep_ratio": 0.5, "positions": "renumber"}),
    "mustdrop": Pipeline(prefill={"name": "mustdrop", "layers": (1, 3), "global_threshold": 0.06,
                                  "individual_threshold": 0.1}),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("kind", ["images", "video"])
@torch.no_grad()
def test_removing_equals_masking(family: str, name: str, kind: str) -> None:
    """Prompt and answer against a full-length run: positions of decoding, masks and deep features included."""
    made, pipeline = model(family), PIPELINES[name]
    inputs = video(family) if kind == "video" else samples(family)[1]
    with pipeline.attach(made) as trace:
        out = generate(made, 4, **inputs)
    kept = [layer[0] for layer in trace.last.kept]
    assert len(kept[-1]) < (24 if kind == "video" else 16)
    expected = naive(made, inputs, out.sequences[0, -4:], kept, pipeline)
    start = inputs["input_ids"].shape[1] - 1
    for step, logits in enumerate(out.logits):
        torch.testing.assert_close(logits[0], expected[start + step], atol=1e-4, rtol=0)


FULL = Pipeline("tome", {"name": "fastv", "keep_ratio": 0.5}, {"name": "streaming_llm", "recent_tokens": 12})


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_and_several_answers(family: str) -> None:
    made, inputs = model(family), samples(family)[2]
    with FULL.attach(made):
        greedy = generate(made, 4, **inputs).sequences
        one = generate(made, 4, **inputs, num_beams=3, num_return_sequences=2)
        batch = generate(made, 4, **together(samples(family)[0], inputs), num_beams=3, num_return_sequences=2).sequences
        torch.manual_seed(0)
        sampled = generate(made, 4, **inputs, do_sample=True, top_k=1, num_return_sequences=2).sequences
    assert torch.equal(one.sequences[:, -4:], batch[2:, -4:])
    assert torch.equal(sampled, greedy.expand(2, -1))


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_of_a_prompt_with_two_images(family: str) -> None:
    made, inputs = model(family), samples(family)[1]
    mixes_up = family == "glm4v" or Version(transformers.__version__) < Version("5.24")
    with FULL.attach(made):
        if mixes_up:  # a bug of transformers, with or without tokcomp
            with pytest.raises(FeatureError, match="in another order than they were encoded"):
                generate(made, 2, **inputs, num_beams=2)
        else:
            greedy = generate(made, 4, **inputs).sequences
            several = generate(made, 4, **inputs, do_sample=True, top_k=1, num_return_sequences=2).sequences
            assert torch.equal(several, greedy.expand(2, -1))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_text_turn_goes_on(family: str) -> None:
    made, inputs = model(family), samples(family)[1]
    later = prompt(5, family=family, seed=8)["input_ids"]
    pipeline = Pipeline("uniform", {"name": "fastv", "keep_tokens": 3, "positions": "renumber"})
    name = cache_name(made)
    with pipeline.attach(made):
        at_once = made(input_ids=later, **{name: cache_in(made(**inputs, use_cache=True))}).logits
        cache = cache_in(made(**inputs, use_cache=True))
        stepwise = [made(input_ids=later[:, i : i + 1], **{name: cache}).logits for i in range(5)]
        torch.testing.assert_close(at_once, torch.cat(stepwise, dim=1), atol=1e-4, rtol=0)
        first = generate(made, 4, **inputs)
        ids = torch.cat([first.sequences, later], dim=1)
        second = generate(made, 3, input_ids=ids, **{name: cache_in(first)})
    assert second.sequences.shape[1] == ids.shape[1] + 3


def test_placeholders_that_disagree_are_refused() -> None:
    made, inputs = model("qwen2_5_vl"), samples("qwen2_5_vl")[0]
    inputs["input_ids"][0, 6] = 7
    with Pipeline("uniform").attach(made), pytest.raises(FeatureError, match="23 image placeholders"):
        generate(made, 1, **inputs)


def test_proportional_attention_needs_a_mask() -> None:
    made = model("qwen2_vl")
    made.model.visual.config._attn_implementation = "flash_attention_2"
    with pytest.raises(CompatibilityError, match="proportional_attention to false"), Pipeline("tome").attach(made):
        pass


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_flow_and_half_precision_runs(family: str) -> None:
    made = model(family).train()
    inputs = samples(family)[1]
    with Pipeline("tome", {"name": "fastv", "keep_ratio": 0.5}).attach(made):
        out = made(**inputs, labels=inputs["input_ids"].masked_fill(inputs["mm_token_type_ids"] > 0, -100))
        out.loss.backward()
    first = made.model.visual.blocks[0].attn.qkv.weight.grad
    assert first is not None
    assert bool(first.isfinite().all())
    assert bool(first.any())
    half = model(family).to(torch.bfloat16)
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    with FULL.attach(half) as trace:
        logits = generate(half, 2, **inputs).logits
    assert bool(logits[1].isfinite().all())
    assert trace.last.after_vision[0] < 16
