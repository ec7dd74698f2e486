"""Ways of generating: beams, several return sequences, later turns, interleaved requests, dtypes, training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import StaticCache

from tests.tiny_models import batch, cached, generate, llama, llava, pixels, prompt
from tokcomp import Pipeline
from tokcomp.errors import CompatibilityError, FeatureError, UnsupportedError
from tokcomp.runner.arguments import cache_in

FULL = Pipeline({"name": "mustdrop", "threshold": 0.6, "merge_layer": 1},
                {"name": "mustdrop", "layers": (1, 3, 5), "global_threshold": 0.03, "individual_threshold": 0.05},
                {"name": "h2o", "heavy_tokens": 12, "recent_tokens": 8})  # fmt: skip


def inputs() -> dict[str, Any]:
    return {"input_ids": prompt(36, 4, 6), "pixel_values": pixels()}


def test_beams_of_one_kind_equal_their_sample() -> None:
    """Beam search with ragged rows: the best beam's tokens give, teacher-forced greedily, the same scores."""
    model = llava(sharp=2.0)
    rows = {**batch(prompt(36, 4, 6), prompt(36, 8, 3, seed=1)), "pixel_values": pixels(2)}
    with FULL.attach(model):
        both = generate(model, 5, **rows, num_beams=3)
        first = generate(model, 5, input_ids=prompt(36, 4, 6), pixel_values=rows["pixel_values"][:1], num_beams=3)
        second = generate(
            model, 5, input_ids=prompt(36, 8, 3, seed=1), pixel_values=rows["pixel_values"][1:], num_beams=3
        )
    assert torch.equal(both.sequences[0, -5:], first.sequences[0, -5:])
    assert torch.equal(both.sequences[1, -5:], second.sequences[0, -5:])


def test_several_return_sequences_share_one_encoding() -> None:
    model = llava(sharp=2.0)
    with FULL.attach(model) as trace:
        torch.manual_seed(3)
        out = generate(model, 4, **inputs(), do_sample=True, num_return_sequences=3)
    assert out.sequences.shape[0] == 3
    assert trace.last.batch_size == 3
    assert len(set(trace.last.after_vision)) == 1


def test_a_text_turn_goes_on_with_the_compressed_cache() -> None:
    """Reading a later turn on the cache equals reading its tokens one at a time."""
    model = llava(sharp=2.0)
    pipeline = Pipeline("uniform", {"name": "fastv", "keep_tokens": 5})
    later = prompt(0, 3, 2, seed=5)
    with pipeline.attach(model), torch.no_grad():
        first = model(**inputs(), use_cache=True)
        at_once = model(input_ids=later, **cached(model, cache_in(first)), use_cache=True).logits
        first = model(**inputs(), use_cache=True)
        cache = cache_in(first)
        stepwise = [
            model(input_ids=later[:, i : i + 1], **cached(model, cache), use_cache=True).logits for i in range(5)
        ]
    torch.testing.assert_close(at_once, torch.cat(stepwise, dim=1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("pipeline", [Pipeline("uniform"), Pipeline(None, "fastv"), Pipeline(None, None, "h2o")])
def test_a_compressed_cache_is_refused_where_nothing_is_attached_and_stays_whole(pipeline: Pipeline) -> None:
    """The bare model would mask and number its entries as if all tokens were there."""
    model, later = llava(sharp=2.0), prompt(0, 2, 0, seed=5)
    with pipeline.attach(model), torch.no_grad():
        expected = model(input_ids=later, **cached(model, cache_in(model(**inputs(), use_cache=True)))).logits
        cache = cache_in(model(**inputs(), use_cache=True))
    with torch.no_grad(), pytest.raises(UnsupportedError, match="no pipeline is attached to the model"):
        model(input_ids=later, **cached(model, cache), use_cache=True)
    with pipeline.attach(model), torch.no_grad():
        again = model(input_ids=later, **cached(model, cache), use_cache=True).logits
    torch.testing.assert_close(again, expected)


def test_generate_goes_on_from_a_compressed_cache_with_the_whole_conversation() -> None:
    model = llava(sharp=2.0)
    pipeline = Pipeline("uniform", {"name": "fastv", "keep_tokens": 5})
    with pipeline.attach(model) as trace:
        first = generate(model, 4, **inputs())
        cache = cache_in(first)
        assert cache.get_seq_length() == 36 + 10 + 3  # the last token has not been processed yet
        ids = torch.cat([first.sequences, prompt(0, 2, 2, seed=7)], dim=1)
        second = generate(model, 4, input_ids=ids, **cached(model, cache))
    assert second.sequences.shape[1] == ids.shape[1] + 4
    assert len(trace.requests) == 1
    assert cache.layers[-1].keys.shape[2] == 10 + 5 + 4 + 4 + 3


def test_the_record_tells_what_every_step_read() -> None:
    model = llava(sharp=2.0)
    with Pipeline(cache={"name": "h2o", "heavy_tokens": 20, "recent_tokens": 10}).attach(model) as trace:
        generate(model, 4, **inputs())
    # The prompt's 46 entries go down to 30; every step reads those and its own.
    assert trace.last.decode_lengths == (((31,),) * 8,) * 3
    assert trace.last.cache_lengths == (30,) * 8
    assert trace.last.tower_tokens == ((37,),) * 5
    assert trace.last.projector_tokens == (36,)
    with Pipeline("uniform").attach(model) as trace:
        generate(model, 4, **inputs())
    assert trace.last.decode_lengths is None
    assert trace.last.projector_tokens == (9,)
    assert trace.last.cache_lengths == (10 + 9 + 3,) * 8


def test_two_interleaved_requests_do_not_meet() -> None:
    model = llava(sharp=2.0)
    one, two = inputs(), {"input_ids": prompt(36, 7, 4, seed=2), "pixel_values": pixels(seed=4)}
    with FULL.attach(model), torch.no_grad():
        alone = [generate(model, 4, **request).sequences[0, -4:] for request in (one, two)]
        outs = [model(**request, use_cache=True) for request in (one, two)]
        tokens: list[list[int]] = [[], []]
        for _ in range(4):
            for i, out in enumerate(outs):
                nxt = out.logits[:, -1:].argmax(dim=-1)
                tokens[i].append(int(nxt))
                outs[i] = model(input_ids=nxt, **cached(model, cache_in(out)), use_cache=True)
    assert [row.tolist() for row in alone] == tokens


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model = llava(sharp=1.0).to(dtype)
    with FULL.attach(model) as trace:
        out = generate(model, 3, input_ids=prompt(36, 4, 6), pixel_values=pixels().to(dtype))
    assert bool(torch.isfinite(torch.cat(out.logits).float()).all())
    assert trace.last.after_vision[0] <= 36


def test_gradients_reach_the_tower_through_kept_tokens_and_training_lowers_the_loss() -> None:
    model = llava(sharp=1.0).train()
    pipeline = Pipeline({"name": "uniform", "keep_tokens": 12}, {"name": "fastv", "layer": 2, "keep_tokens": 6})
    ids = prompt(36, 4, 6)
    labels = ids.masked_fill(ids == 199, -100)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    with pipeline.attach(model):
        for _ in range(6):
            loss = model(input_ids=ids, pixel_values=pixels(), labels=labels, use_cache=False).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
    gradient = model.model.vision_tower.embeddings.patch_embedding.weight.grad
    assert gradient is not None
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.abs().sum()) > 0
    assert losses[-1] < losses[0] - 0.5


def test_right_padding_and_no_cache() -> None:
    model = llava(sharp=2.0)
    short, long = prompt(36, 4, 3), prompt(36, 4, 9, seed=1)
    ids = torch.zeros(2, long.shape[1], dtype=torch.long)
    mask = torch.zeros_like(ids)
    ids[0, : short.shape[1]], ids[1] = short[0], long[0]
    mask[0, : short.shape[1]], mask[1] = 1, 1
    with Pipeline("uniform", "fastv").attach(model), torch.no_grad():
        both = model(input_ids=ids, attention_mask=mask, pixel_values=pixels(2), use_cache=False).logits
        alone = model(input_ids=short, pixel_values=pixels(2)[:1], use_cache=False).logits
    torch.testing.assert_close(both[0, : short.shape[1]], alone[0], atol=1e-4, rtol=0)


# -- what is refused, in one line, the model left as it was ------------------------------------------------------------


def test_a_static_cache_is_refused() -> None:
    model = llava()
    cache = StaticCache(config=model.config.text_config, max_cache_len=64)
    with FULL.attach(model), pytest.raises(UnsupportedError, match="default dynamic cache"), torch.no_grad():
        model(**inputs(), **cached(model, cache), use_cache=True)


def test_a_cache_policy_without_a_cache_is_refused() -> None:
    model = llava()
    with FULL.attach(model), pytest.raises(UnsupportedError, match="use_cache=True"), torch.no_grad():
        model(**inputs(), use_cache=False)


def test_assisted_generation_is_refused() -> None:
    model = llava()
    with FULL.attach(model), pytest.raises(UnsupportedError, match="cannot be cropped"):
        model.generate(**inputs(), max_new_tokens=6, do_sample=False, prompt_lookup_num_tokens=2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_features_are_refused(bad: float) -> None:
    model = llava()
    image = pixels()
    image[0, 0, 3, 3] = bad
    with FULL.attach(model), pytest.raises(FeatureError, match="NaN or Inf"):
        generate(model, 2, input_ids=prompt(36, 4, 6), pixel_values=image)


def test_a_text_guided_filter_without_text_is_refused() -> None:
    model = llava()
    with FULL.attach(model), pytest.raises(CompatibilityError, match="put text after the image"):
        generate(model, 2, input_ids=prompt(36, 4, 0), pixel_values=pixels())


def test_placeholders_that_disagree_with_the_images_are_refused() -> None:
    model = llava()
    with FULL.attach(model), pytest.raises((FeatureError, ValueError), match="image"):
        generate(model, 2, input_ids=prompt(35, 4, 6), pixel_values=pixels())


@pytest.mark.parametrize(("pipeline", "words"), [
    (Pipeline(prefill={"name": "fastv", "layer": 8}), "beyond|last"),
    (Pipeline(prefill={"name": "mustdrop", "layers": (2, 40)}), "40"),
    (Pipeline(vision={"name": "mustdrop", "merge_layer": 9}), "9"),
])  # fmt: skip
def test_layers_beyond_the_depth_are_refused_on_entry(pipeline: Pipeline, words: str) -> None:
    model = llava()
    with pytest.raises(CompatibilityError, match=words), pipeline.attach(model):
        pass
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_image_strategies_on_a_language_model_are_refused() -> None:
    with pytest.raises(CompatibilityError, match="takes no images"), Pipeline("tome").attach(llama()):
        pass


def test_an_unknown_model_is_refused() -> None:
    with (
        pytest.raises(UnsupportedError, match="Linear is not a supported model"),
        Pipeline().attach(torch.nn.Linear(2, 2)),
    ):
        pass
