"""A pipeline on a GPU does what it does on a CPU, and its decoding never waits for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.waits import waits
from tests.runner.test_batches import samples, spec, together
from tests.tiny_models import generate, llava
from tokcomp import Pipeline
from tokcomp.runner.arguments import cache_in, cache_name
from tokcomp.types import debug_checks

pytestmark = pytest.mark.gpu

PIPELINES = [
    {"vision": spec("vision", "tome")},
    {"vision": spec("vision", "fastervlm")},
    {"prefill": "fastv"},
    {"cache": spec("cache", "h2o")},
    {"cache": spec("cache", "streaming_llm")},
    {stage: spec(stage, "mustdrop") for stage in ("vision", "prefill", "cache")},
    {"vision": spec("vision", "tome"), "prefill": "fastv", "cache": spec("cache", "h2o")},
]


def names(stages: dict[str, Any]) -> str:
    return "+".join(f"{stage}-{value if isinstance(value, str) else value['name']}" for stage, value in stages.items())


def on_cuda(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value.cuda() for name, value in inputs.items()}


@pytest.mark.parametrize("stages", PIPELINES, ids=names)
def test_gpu_equals_cpu(stages: dict[str, Any]) -> None:
    inputs, pipeline = together(samples()), Pipeline(**stages)
    found = []
    for device in ("cpu", "cuda"):
        model = llava().to(device)
        with pipeline.attach(model) as trace:
            output = generate(model, 3, **(on_cuda(inputs) if device == "cuda" else inputs))
        found.append((trace.last.kept, [step.cpu() for step in output.logits]))
    (kept, logits), (kept_there, logits_there) = found
    for layer, there in zip(kept, kept_there, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(layer, there, strict=True))
    for step, there in zip(logits, logits_there, strict=True):
        torch.testing.assert_close(step, there, atol=1e-3, rtol=0)


@pytest.mark.parametrize("stages", PIPELINES, ids=names)
def test_decoding_does_not_wait(stages: dict[str, Any]) -> None:
    model, inputs = llava().cuda(), on_cuda(together(samples()[:1]))
    with debug_checks(False), torch.inference_mode(), Pipeline(**stages).attach(model):
        output = model(**inputs, use_cache=True)
        cache, name = cache_in(output), cache_name(model)
        token = output.logits[:, -1:].argmax(-1)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                token = model(input_ids=token, use_cache=True, **{name: cache}).logits[:, -1:].argmax(-1)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("stages", PIPELINES, ids=names)
def test_the_prefill_waits_a_few_times_only(stages: dict[str, Any]) -> None:
    """Once for the prompt's counts, and once for each decision whose counts depend on the content."""
    model, inputs = llava().cuda(), on_cuda(together(samples()[:1]))

    def prefill() -> None:
        with torch.inference_mode():
            model(**inputs, use_cache=True)

    dense = sum(waits(prefill).values())
    with debug_checks(False), Pipeline(**stages).attach(model):
        compressed = waits(prefill)
    content = 30 if "mustdrop" in names(stages) else 0  # how much it merges and drops follows from the content
    assert sum(compressed.values()) <= dense + 12 + content, compressed
