"""Ways of running a model that change nothing about the answer, or are refused before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

from tests.tiny_models import cached, generate, llava, pixels, prompt
from tokcomp import Pipeline
from tokcomp.ops.scores import attention_rows

FULL = Pipeline({"name": "mustdrop", "threshold": 0.6, "merge_layer": 1},
                {"name": "fastv", "layer": 2, "keep_tokens": 9},
                {"name": "h2o", "heavy_tokens": 12, "recent_tokens": 8})  # fmt: skip


def inputs() -> dict[str, Any]:
    return {"input_ids": prompt(36, 4, 6), "pixel_values": pixels()}


def answer(model: Any, n: int = 5, **options: Any) -> torch.Tensor:
    with FULL.attach(model):
        ids: torch.Tensor = generate(model, n, **inputs(), **options).sequences
    return ids


def test_modes_without_gradients_give_the_same() -> None:
    model = llava(sharp=2.0)
    expected = answer(model)
    with torch.inference_mode():
        assert torch.equal(answer(model), expected)
        with FULL.attach(model):
            logits = model(**inputs()).logits
    assert logits.is_inference()
    with torch.no_grad(), FULL.attach(model):
        torch.testing.assert_close(model(**inputs()).logits, logits.clone())


def test_attention_implementations_give_the_same() -> None:
    both = []
    for attention in ("sdpa", "eager"):
        model = llava(sharp=2.0, attention=attention)
        with FULL.attach(model) as trace:
            out = generate(model, 4, **inputs())
        both.append((torch.stack(out.logits), trace.last.kept[-1][0]))
    torch.testing.assert_close(both[0][0], both[1][0], atol=1e-4, rtol=0)
    assert torch.equal(both[0][1], both[1][1])


class Collect(BaseStreamer):  # type: ignore[misc]
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.ids += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_a_streamer_gets_every_token() -> None:
    model, streamer = llava(sharp=2.0), Collect()
    ids = answer(model, streamer=streamer)
    assert streamer.ids == ids[0].tolist()
    assert streamer.ended
    assert TextIteratorStreamer is not None


def test_sampling_is_reproducible_and_follows_the_compressed_logits() -> None:
    model = llava(sharp=2.0)
    options = {"do_sample": True, "temperature": 0.8, "top_k": 20}
    with FULL.attach(model):
        torch.manual_seed(5)
        first = generate(model, 6, **inputs(), **options)
        torch.manual_seed(5)
        second = generate(model, 6, **inputs(), **options)
    assert torch.equal(first.sequences, second.sequences)
    # Drawn with the generator's state of the first step, the distribution of the logits gives the first token.
    torch.manual_seed(5)
    top = first.logits[0][0] / 0.8
    hidden = top < top.topk(20).values[-1]
    drawn = torch.multinomial(top.masked_fill(hidden, -torch.inf).softmax(-1), 1)
    assert int(drawn) == int(first.sequences[0, 46])


def test_a_prompt_read_before_attaching_goes_on_as_it_began() -> None:
    model = llava(sharp=2.0)
    with torch.no_grad():
        out = model(**inputs(), use_cache=True)
        following = out.logits[:, -1:].argmax(-1)
        expected = model(
            input_ids=following, use_cache=True, **cached(model, out.get("cache", out.get("past_key_values")))
        )
        out = model(**inputs(), use_cache=True)
        with Pipeline().attach(model):
            logits = model(input_ids=following, **cached(model, out.get("cache", out.get("past_key_values")))).logits
    assert torch.equal(logits, expected.logits)


# Before 5.24 transformers asks where the weights lie, not where accelerate brings them.
@pytest.mark.filterwarnings(
    "ignore:You are calling .generate.. with the `input_ids` being on a device type:UserWarning"
)
@pytest.mark.parametrize("place", ["hooks", "offload"])
def test_weights_that_accelerate_places_and_offloads(place: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    expected = answer(llava(sharp=2.0))
    model = llava(sharp=2.0)
    if place == "hooks":
        model = accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    else:
        model = accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
        assert next(model.parameters()).device.type == "meta"
    assert hasattr(model, "_hf_hook")
    forward = model.model.vision_tower.encoder.layers[1].forward
    assert torch.equal(answer(model), expected)
    assert model.model.vision_tower.encoder.layers[1].forward == forward


def test_a_prompt_after_an_answer_of_one_token() -> None:
    """No step followed the first prompt; the second one has another number of images and is encoded before it is read."""
    model = llava(sharp=2.0)
    two = torch.cat([prompt(36, 4, 6), prompt(36, 3, 5, seed=1)], dim=1)
    with Pipeline("uniform").attach(model):
        generate(model, 1, input_ids=two, pixel_values=pixels(2, seed=2))
        assert generate(model, 1, input_ids=prompt(36, 4, 6), pixel_values=pixels()).sequences.shape == (1, 47)
        generate(model, 1, input_ids=torch.cat([two, prompt(36, 2, 3)], dim=1), pixel_values=pixels(3, seed=2))
        generate(model, 1, input_ids=two, pixel_values=pixels(2, seed=2))


def test_scores_stay_exact_under_autocast() -> None:
    """Attention is looked at in float32 there, too: equal bfloat16 scores would change which tokens survive."""
    model = llava(sharp=2.0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), FULL.attach(model) as trace:
        logits = model(**inputs()).logits
    assert bool(logits.isfinite().all())
    assert len(trace.last.kept[-1][0]) == 9
    query, key = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        rows = attention_rows(query, key, scale=0.5)
    assert torch.equal(rows, attention_rows(query, key, scale=0.5))
