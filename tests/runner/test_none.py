"""With nothing to compress, and after detaching, the model is what it was: bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_models import batch, generate, llama, llava, pixels, prompt
from tokcomp import Pipeline
from tokcomp.errors import UnsupportedError


def fingerprint(model: Any) -> dict[str, Any]:
    """Everything that hooks and switches could leave behind on a model."""
    return {
        name: (
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            "forward" in vars(module),
            getattr(getattr(module, "config", None), "_attn_implementation", None),
        )
        for name, module in model.named_modules()
    }


def inputs() -> dict[str, Any]:
    return {"input_ids": prompt(36, 4, 6), "pixel_values": pixels()}


def test_all_none_is_bit_identical_in_generate_and_forward() -> None:
    model = llava()
    for kwargs in ({}, {"num_beams": 3}, {"do_sample": True, "top_k": 20}):
        torch.manual_seed(1)
        dense = generate(model, **inputs(), **kwargs)
        with Pipeline().attach(model):
            torch.manual_seed(1)
            attached = generate(model, **inputs(), **kwargs)
        assert torch.equal(dense.sequences, attached.sequences)
        assert all(torch.equal(a, b) for a, b in zip(dense.logits, attached.logits, strict=True))
    with torch.no_grad():
        dense = model(**inputs()).logits
        with Pipeline().attach(model):
            assert torch.equal(model(**inputs()).logits, dense)


@pytest.mark.parametrize("pipeline", [Pipeline("mustdrop", "mustdrop", "mustdrop"), Pipeline("tome", "fastv", "h2o")])
def test_nothing_is_left_after_exit(pipeline: Pipeline) -> None:
    model = llava()
    dense = generate(model, **inputs())
    before = fingerprint(model)
    with pipeline.attach(model):
        assert fingerprint(model) != before
        generate(model, **inputs())
    assert fingerprint(model) == before
    after = generate(model, **inputs())
    assert all(torch.equal(a, b) for a, b in zip(dense.logits, after.logits, strict=True))


class Broken(Exception):
    pass


@pytest.mark.parametrize("where", ["model.vision_tower.encoder.layers.2", "model.multi_modal_projector",
                                   "model.language_model.layers.3", "lm_head"])  # fmt: skip
def test_nothing_is_left_after_an_exception_anywhere(where: str) -> None:
    model = llava()
    dense = generate(model, **inputs())  # transformers installs its own recording hooks at the first call
    before = fingerprint(model)

    def fail(*_: Any) -> None:
        raise Broken

    handle = model.get_submodule(where).register_forward_hook(fail)
    with pytest.raises(Broken), Pipeline("mustdrop", "fastv", "h2o").attach(model):
        generate(model, **inputs())
    handle.remove()
    after = generate(model, **inputs())
    assert torch.equal(dense.sequences, after.sequences)
    assert fingerprint(model) == before


def test_a_failed_prompt_does_not_disturb_the_next_one() -> None:
    model = llava()
    pipeline = Pipeline("mustdrop", "fastv", "h2o")
    with pipeline.attach(model):
        expected = generate(model, **inputs())

    def fail(*_: Any) -> None:
        raise Broken

    with pipeline.attach(model) as trace:
        handle = model.model.multi_modal_projector.register_forward_hook(fail)
        with pytest.raises(Broken):
            generate(model, **inputs())
        handle.remove()
        handle = model.model.language_model.register_forward_pre_hook(fail)
        with pytest.raises(Broken):
            generate(model, **inputs())
        handle.remove()
        again = generate(model, **inputs())
    assert torch.equal(expected.sequences, again.sequences)
    assert len(trace.requests) >= 1


def test_a_text_only_prompt_runs_as_without_tokcomp() -> None:
    model = llava()
    text = prompt(0, 5, 5)
    dense = generate(model, input_ids=text)
    with Pipeline("mustdrop", "mustdrop", "h2o").attach(model) as trace:
        attached = generate(model, input_ids=text)
    assert all(torch.equal(a, b) for a, b in zip(dense.logits, attached.logits, strict=True))
    assert trace.requests == []


def test_attaching_twice_is_refused_and_the_first_goes_on() -> None:
    model = llava()
    with Pipeline(prefill="fastv").attach(model):
        expected = generate(model, **inputs()).sequences
        with pytest.raises(UnsupportedError, match="attached to this model already"), Pipeline().attach(model):
            pass
        assert torch.equal(generate(model, **inputs()).sequences, expected)


def test_a_streamer_sees_every_token() -> None:
    model = llava()
    seen: list[int] = []

    class Collect:
        def put(self, value: Tensor) -> None:
            seen.extend(value.flatten().tolist())

        def end(self) -> None:
            seen.append(-1)

    with Pipeline("mustdrop", "fastv", "h2o").attach(model):
        out = model.generate(**inputs(), max_new_tokens=4, min_new_tokens=4, do_sample=False, streamer=Collect())
    assert seen == [*out[0].tolist(), -1]


def test_a_cache_policy_attaches_to_a_plain_language_model() -> None:
    model = llama()
    ids = prompt(0, 12, 12)
    rows = batch(prompt(0, 12, 12), prompt(0, 5, 6, seed=1))
    with Pipeline(cache={"name": "h2o", "heavy_tokens": 6, "recent_tokens": 6}).attach(model) as trace:
        generate(model, input_ids=ids)
        assert trace.last.cache_lengths == (12,) * 4
        generate(model, **rows)
    with Pipeline(cache=None).attach(model):
        dense = generate(model, input_ids=ids)
    assert torch.equal(dense.sequences, generate(model, input_ids=ids).sequences)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch.compile imports parts of torch that warn
@pytest.mark.parametrize("part", ["whole", "in place", "a layer"])
def test_a_compiled_model_is_refused(part: str) -> None:
    model = llava()
    given = model
    if part == "whole":
        given = torch.compile(model, backend="eager")
    elif part == "in place":
        model.compile()
    else:
        model.model.language_model.layers[3].compile()
    with pytest.raises(UnsupportedError, match="was compiled"), Pipeline(cache="h2o").attach(given):
        pass
    assert not model._forward_pre_hooks


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_model_compiled_while_attached_is_refused() -> None:
    model = llava()
    inputs = {"input_ids": prompt(36, 5, 8), "pixel_values": pixels(1)}
    with torch.inference_mode(), Pipeline(prefill="fastv").attach(model):
        before = model(**inputs).logits
        with pytest.raises(UnsupportedError, match=r"compiled .* while a pipeline is attached"):
            torch.compile(model, backend="eager", dynamic=True)(**inputs)
        assert torch.equal(before, model(**inputs).logits)
    torch.compiler.reset()
