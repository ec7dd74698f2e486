"""Conversations by generate() and forward(): batches of turns, beams, text first, several conversations at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor

from tests.models.families import families
from tests.runner.conversation import answer
from tests.tiny_models import PAD, batch, cached, generate, llava, pixels, prompt
from tokcomp import Pipeline
from tokcomp.errors import CompatibilityError, FeatureError, UnsupportedError
from tokcomp.runner.arguments import cache_in

SNAPKV = {"name": "snapkv", "keep_ratio": 0.6, "window": 3}
FILTER = {"name": "mustdrop", "layers": (1, 3, 5), "global_threshold": 0.03, "individual_threshold": 0.05}
FULL = Pipeline({"name": "mustdrop", "threshold": 0.6, "merge_layer": 1}, FILTER,
                {"name": "h2o", "heavy_tokens": 12, "recent_tokens": 8})  # fmt: skip
PIPELINES = {
    "uniform+fastv": Pipeline("uniform", {"name": "fastv", "keep_tokens": 5}),
    "snapkv": Pipeline(cache=SNAPKV),
    "adakv": Pipeline(cache={"name": "adakv", "base": SNAPKV}),
    "h2o, tokens": Pipeline(cache={"name": "h2o", "heavy_tokens": 8, "recent_tokens": 6}),
    "h2o, ratios": Pipeline(cache={"name": "h2o", "heavy_ratio": 0.2, "recent_ratio": 0.2}),
    "streaming_llm": Pipeline(cache={"name": "streaming_llm", "keep_ratio": 0.5}),
    "tova": Pipeline(cache={"name": "tova", "keep_ratio": 0.5}),
    "vlcache": Pipeline(cache={"name": "vlcache", "keep_ratio": 0.5}),
    "output_aware": Pipeline(cache={"name": "output_aware", "start": 1, "every": 1}),
    "mustdrop": Pipeline(prefill=FILTER, cache="mustdrop"),
    "everything": FULL,
}

KINDS = "llava", "llava_next", "internvl", "gemma3", "paligemma", "qwen2_vl", "qwen3_vl"


def forward(model: Any, cache: Any, **inputs: Any) -> Any:
    return model(**inputs, **({} if cache is None else cached(model, cache)), use_cache=True)


def numbered(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the position ids that generate() gives: padding has none."""
    return {**rows, "position_ids": (rows["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)}


def right_padded(*rows: Tensor) -> dict[str, Tensor]:
    length = max(row.shape[1] for row in rows)
    ids, mask = torch.full((len(rows), length), PAD), torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : row.shape[1]], mask[i, : row.shape[1]] = row[0], 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_batch_of_image_turns_of_different_length_equals_its_conversations(name: str, side: str) -> None:
    model, pad = llava(sharp=2.0), batch if side == "left" else right_padded
    first = [prompt(36, 4, 6), prompt(36, 8, 3, seed=1)]
    later = [prompt(36, 3, 4, seed=2), prompt(36, 7, 8, seed=3)]
    last = [prompt(0, 2, 0, seed=4), prompt(0, 2, 0, seed=5)]
    one, two = pixels(2), pixels(2, seed=7)
    with PIPELINES[name].attach(model) as trace:
        cache = cache_in(forward(model, None, **numbered(batch(*first)), pixel_values=one))
        whole = [forward(model, cache, **pad(*later), pixel_values=two).logits,
                 forward(model, cache, input_ids=torch.cat(last)).logits]  # fmt: skip
        assert trace.last.image_tokens == (36, 36)
        for i in range(2):
            cache = cache_in(forward(model, None, input_ids=first[i], pixel_values=one[i : i + 1]))
            alone = [forward(model, cache, input_ids=later[i], pixel_values=two[i : i + 1]).logits,
                     forward(model, cache, input_ids=last[i]).logits]  # fmt: skip
            length = later[i].shape[1]
            ours = whole[0][i, -length:] if side == "left" else whole[0][i, :length]
            torch.testing.assert_close(ours, alone[0][0], atol=1e-4, rtol=0)
            torch.testing.assert_close(whole[1][i], alone[1][0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [name for name in PIPELINES if name != "output_aware"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_batch_of_text_turns_of_different_length_equals_its_conversations(name: str, side: str) -> None:
    model, pad = llava(sharp=2.0), batch if side == "left" else right_padded
    first = [prompt(36, 4, 6), prompt(36, 8, 3, seed=1)]
    later, image = [prompt(0, 3, 0, seed=2), prompt(0, 7, 0, seed=3)], pixels(2)
    last = [prompt(0, 2, 0, seed=4), prompt(0, 2, 0, seed=5)]
    with PIPELINES[name].attach(model):
        cache = cache_in(forward(model, None, **numbered(batch(*first)), pixel_values=image))
        whole = [forward(model, cache, **pad(*later)).logits, forward(model, cache, input_ids=torch.cat(last)).logits]
        for i in range(2):
            cache = cache_in(forward(model, None, input_ids=first[i], pixel_values=image[i : i + 1]))
            alone = [forward(model, cache, input_ids=each).logits for each in (later[i], last[i])]
            length = later[i].shape[1]
            ours = whole[0][i, -length:] if side == "left" else whole[0][i, :length]
            torch.testing.assert_close(ours, alone[0][0], atol=1e-4, rtol=0)
            torch.testing.assert_close(whole[1][i], alone[1][0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["uniform+fastv", "snapkv", "adakv", "vlcache", "mustdrop"])  # padding evicts nothing
@torch.no_grad()
def test_answers_of_different_length_are_followed_by_padding(name: str) -> None:
    """A batch generates until its longest answer ends; what the others hold behind theirs is padding for the next turn."""
    model, image, later = llava(sharp=2.0), pixels(2), pixels(2, seed=7)
    first, answers = [prompt(36, 4, 6), prompt(36, 4, 6, seed=1)], [prompt(0, 4, 0, seed=2), prompt(0, 2, 0, seed=3)]
    text, turns = (
        [prompt(0, 2, 0, seed=6), prompt(0, 2, 0, seed=8)],
        [prompt(36, 3, 4, seed=4), prompt(36, 3, 4, seed=5)],
    )
    mask = torch.ones(2, 46 + 4 + 2 + 43, dtype=torch.long)
    mask[1, 48:50] = 0
    with PIPELINES[name].attach(model):
        cache = cache_in(forward(model, None, input_ids=torch.cat(first), pixel_values=image))
        said = right_padded(*answers)["input_ids"]
        for i in range(4):
            forward(model, cache, input_ids=said[:, i : i + 1])
        whole = [forward(model, cache, input_ids=torch.cat(text), attention_mask=mask[:, :52]).logits,
                 forward(model, cache, input_ids=torch.cat(turns), attention_mask=mask, pixel_values=later).logits,
                 forward(model, cache, input_ids=torch.cat(text)).logits]  # fmt: skip
        for i in range(2):
            cache = cache_in(forward(model, None, input_ids=first[i], pixel_values=image[i : i + 1]))
            forward(model, cache, input_ids=answers[i])
            alone = [forward(model, cache, input_ids=text[i]).logits,
                     forward(model, cache, input_ids=turns[i], pixel_values=later[i : i + 1]).logits,
                     forward(model, cache, input_ids=text[i]).logits]  # fmt: skip
            for ours, mine in zip(whole, alone, strict=True):
                torch.testing.assert_close(ours[i], mine[0], atol=1e-4, rtol=0)


def conversation(family: Any, first: Any, answered: Tensor, second: Any) -> dict[str, Any]:
    """What generate() takes of a second turn: the whole conversation, and the images that are new."""
    ids = torch.cat([first["input_ids"], answered, second["input_ids"]], dim=1)
    said = torch.full_like(answered, int(family.name == "paligemma"))
    types = {
        name: torch.cat([first[name], said, second[name]], dim=1) for name in second if name.endswith("token_type_ids")
    }
    return {**second, "input_ids": ids, **types}


@pytest.mark.parametrize(
    "name", ["llava", "llava_next", "internvl", "gemma3", "paligemma", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"]
)
@torch.no_grad()
def test_generate_takes_the_whole_conversation_and_the_new_images(name: str) -> None:
    if name == "gemma3" and Version(transformers.__version__) < Version("5.24"):
        pytest.skip("its own code for masks does not take a cache shorter than the conversation")
    family = families()[name]
    model = family.model()
    pipeline = Pipeline({"name": "uniform", "keep_ratio": 0.5}, {"name": "fastv", "keep_ratio": 0.5}, SNAPKV)
    first, second, other = family.sample(1, 0), family.sample(2, 2), family.sample(1, 5)
    with pipeline.attach(model) as trace:
        out = generate(model, 3, **first)
        answered = out.sequences[:, first["input_ids"].shape[1] :]
        generate(model, 2, **other)  # another conversation in between
        both = conversation(family, first, answered, second)
        again = generate(model, 3, **both, **cached(model, cache_in(out)))
        assert trace.last.images_of == (2,)
        cache = cache_in(forward(model, None, **first))
        for i in range(2):
            forward(model, cache, input_ids=answered[:, i : i + 1])
        turn = {**second, "input_ids": torch.cat([answered[:, 2:], second["input_ids"]], dim=1)}
        for types in [each for each in second if each.endswith("token_type_ids")]:
            turn[types] = both[types] if types == "token_type_ids" else both[types][:, -turn["input_ids"].shape[1] :]
        logits = [forward(model, cache, **turn).logits[:, -1]]
        for i in range(2):
            token = again.sequences[:, both["input_ids"].shape[1] + i][:, None]
            logits.append(forward(model, cache, input_ids=token).logits[:, -1])
    for mine, ours in zip(again.logits, logits, strict=True):
        torch.testing.assert_close(mine, ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
@torch.no_grad()
def test_two_conversations_take_turns_on_one_model(name: str) -> None:
    family = families()[name]
    model = family.model()
    turns = [[family.sample(1, 0), answer(2, 1), family.sample(2, 2), answer(2, 3)],
             [family.sample(2, 4), answer(2, 5), family.sample(1, 6), answer(2, 7)]]  # fmt: skip
    pipeline = Pipeline(
        {"name": "uniform", "keep_ratio": 0.5},
        {"name": "fastv"},
        {"name": "h2o", "heavy_tokens": 8, "recent_tokens": 6},
    )
    with pipeline.attach(model):
        alone = []
        for each in turns:
            cache = cache_in(forward(model, None, **each[0]))
            alone.append([forward(model, cache, **turn).logits for turn in each[1:]])
        caches = [cache_in(forward(model, None, **each[0])) for each in turns]
        for number in range(1, 4):
            for one in (1, 0):
                logits = forward(model, caches[one], **turns[one][number]).logits
                torch.testing.assert_close(logits, alone[one][number - 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 3, "do_sample": True}])
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
@torch.no_grad()
def test_beams_and_several_answers_in_a_later_turn(name: str, options: dict[str, Any]) -> None:
    """Every row of the repeated conversation begins with the logits of the single one."""
    family = families()[name]
    model, first, second = family.model(), family.sample(1, 0), family.sample(1, 2)
    with Pipeline("uniform", cache={"name": "adakv", "base": SNAPKV}).attach(model) as trace:
        out = generate(model, 2, **first)
        both = conversation(family, first, out.sequences[:, -2:], second)
        # transformers hands images out by the placeholders of all that it is given: it is given this turn alone.
        own = {k: v[:, -1 - second["input_ids"].shape[1] :] if k.endswith("_ids") else v for k, v in both.items()}
        own["attention_mask"] = torch.ones_like(both["input_ids"])
        with pytest.raises(UnsupportedError, match="batch_repeat_interleave"):
            generate(model, 2, **own, **options, **cached(model, cache_in(out)))
        alone = generate(model, 1, **both, **cached(model, cache_in(out))).logits[0]
        cache = cache_in(generate(model, 2, **first))
        cache.batch_repeat_interleave(3)
        many = generate(model, 3, **own, **options, **cached(model, cache))
    assert trace.last.batch_size == 3
    torch.testing.assert_close(many.logits[0], alone.expand(3, -1), atol=1e-4, rtol=0)


@torch.no_grad()
def test_what_cannot_follow_is_refused_before_anything_runs() -> None:
    model = llava(sharp=2.0)
    ids, image = prompt(36, 4, 6), pixels()
    with Pipeline(cache={"name": "output_aware", "start": 1}).attach(model):
        cache = cache_in(forward(model, None, **batch(ids, ids), pixel_values=pixels(2)))
        with pytest.raises(UnsupportedError, match="turns of this batch are of different length"):
            forward(model, cache, **batch(prompt(0, 2, 0), prompt(0, 4, 0)))
        with pytest.raises(FeatureError, match="fits neither the 3 tokens of this turn nor the 49"):
            forward(model, cache, input_ids=ids[:, :3].repeat(2, 1), attention_mask=torch.ones(2, 7))
    with Pipeline("uniform", FILTER).attach(model):
        out = generate(model, 2, input_ids=ids, pixel_values=image)
        seen = cache_in(out).get_seq_length()
        whole = torch.cat([out.sequences, prompt(36, 2, 3, seed=2)], dim=1)
        with pytest.raises(FeatureError, match="in a later turn for its own images alone"):
            generate(model, 2, input_ids=whole, pixel_values=pixels(2), **cached(model, cache_in(out)))
        with pytest.raises(CompatibilityError, match="put text after the image"):
            forward(model, cache_in(out), input_ids=prompt(36, 2, 0), pixel_values=image)
        assert cache_in(out).get_seq_length() == seen
        generate(model, 2, input_ids=whole, pixel_values=image, **cached(model, cache_in(out)))
    with Pipeline().attach(model), pytest.raises(UnsupportedError, match="this cache was compressed"):
        forward(model, cache_in(out), input_ids=prompt(36, 2, 3), pixel_values=image)
