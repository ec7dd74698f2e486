"""What is drawn is what happened."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tokcomp import Pipeline
from tokcomp.experiment.load import LoadedModel
from tokcomp.report.story import seen_image, tell


def noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype=np.uint8))


def test_the_model_sees_a_picture_of_its_own_size_unchanged(loaded: LoadedModel) -> None:
    image = noise()
    pixels = loaded.inputs(["?"], [[image]])["pixel_values"][0]
    np.testing.assert_allclose(seen_image(pixels, loaded.processor), np.asarray(image) / 255, atol=1e-5)


def test_patches_follow_the_record(loaded: LoadedModel) -> None:
    pipeline = Pipeline(
        vision={"name": "mustdrop", "threshold": 0.3}, prefill={"name": "fastv", "layer": 3, "keep_tokens": 20}
    )
    story = tell(loaded, noise(), "which digit is red ?", pipeline, max_new_tokens=3)
    with pipeline.attach(loaded.model) as trace:
        loaded.generate(loaded.inputs(["which digit is red ?"], [[noise()]]), 3)
    record = trace.last
    assert story.grid == (12, 12)
    assert len(set(story.owner.tolist())) == story.after_vision < 144  # something merged, nothing was dropped
    assert set(story.owner.tolist()) == set(record.kept[0][0].tolist())
    assert set(np.flatnonzero(story.keys)) == set(record.protected[0].tolist())
    assert list(story.alive) == [2]
    # A patch is alive when the token that holds it is.
    expected = np.isin(story.owner, record.kept[3][0].numpy())
    np.testing.assert_array_equal(story.alive[2], expected)
    assert story.alive[2][story.keys].all()


def test_dropped_patches_belong_to_no_token(loaded: LoadedModel) -> None:
    story = tell(
        loaded, noise(), "how many digits ?", Pipeline(vision={"name": "random", "keep_tokens": 30}), max_new_tokens=1
    )
    assert (story.owner >= 0).sum() == 30
    kept = np.flatnonzero(story.owner >= 0)
    np.testing.assert_array_equal(story.owner[kept], kept)


def test_the_cache_is_told_at_both_ends(loaded: LoadedModel) -> None:
    policy = {"name": "streaming_llm", "sinks": 4, "recent_tokens": 60}
    story = tell(loaded, noise(), "how many digits ?", Pipeline(cache=policy), max_new_tokens=6)
    cache, share = story.cache, story.cache.share
    prompt = loaded.inputs(["how many digits ?"], [[noise()]])["input_ids"][0]
    assert cache.dense == (len(prompt), len(prompt) + story.new_tokens[0] - 1)
    assert cache.prefill == (64.0,) * 8
    assert cache.end == (64.0,) * 8
    assert share is not None
    # All heads hold the same entries: the first four, and the last of those written.
    written = len(prompt) + story.new_tokens[1] - 1
    columns = np.arange(len(prompt))
    held = (columns < 4) | (columns >= written - 60)
    vision = (prompt == loaded.model.config.image_token_id).numpy()
    np.testing.assert_array_equal(share, held[vision].astype(float))


def test_heads_may_hold_different_entries(loaded: LoadedModel) -> None:
    policy = {"name": "random", "keep_tokens": 50}
    share = tell(loaded, noise(), "how many digits ?", Pipeline(cache=policy), max_new_tokens=2).cache.share
    assert share is not None
    assert 0 < share.mean() < 0.5
    heads = 8 * loaded.model.config.text_config.num_key_value_heads
    np.testing.assert_allclose(share * heads, np.round(share * heads))
    assert len(np.unique(share)) > 3


@pytest.mark.parametrize("cache", [None, "h2o"])
def test_the_model_is_left_as_it_was(loaded: LoadedModel, cache: str | None) -> None:
    inputs = loaded.inputs(["how many digits ?"], [[noise()]])
    with torch.inference_mode():
        before = loaded.model(**inputs).logits
        tell(
            loaded,
            noise(),
            "how many digits ?",
            Pipeline(vision="tome", prefill="fastv", cache=cache),
            max_new_tokens=2,
        )
        assert torch.equal(loaded.model(**inputs).logits, before)


@pytest.mark.parametrize("policy", ["adakv", "snapkv", "lookm", "output_aware"])
def test_every_kind_of_cache_can_be_told(policy: str, loaded: LoadedModel) -> None:
    story = tell(loaded, noise(), "how many digits ?", Pipeline(cache=policy), max_new_tokens=6)
    share = story.cache.share
    assert share is not None
    # Heads hold as many vision entries in all as the shares say; text entries make up the rest of the lengths.
    held = float(share.sum())
    assert 0 < held <= sum(story.cache.end) / len(story.cache.end)
