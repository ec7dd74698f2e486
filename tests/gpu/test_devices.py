"""A language model whose first layers compute on the GPU and whose last ones on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.models.families import families, models
from tests.runner.test_devices import PIPELINES, answer, split
from tokcomp import Pipeline

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", PIPELINES)
def test_the_answer_is_that_of_one_device(name: str) -> None:
    family, stages = PIPELINES[name]
    whole, pipeline, recipe = models(family), Pipeline(**stages), families()[family]
    inputs, following = recipe.batch([recipe.sample(2, 0), recipe.sample(1, 1)]), torch.tensor([[7, 8], [9, 10]])
    expected, told = answer(whole, pipeline, inputs, following)
    gpu = torch.device("cuda", 0)
    divided = split(whole, gpu, torch.device("cpu"), nn.Module.to)
    moved = {key: value.to(gpu) for key, value in inputs.items()}
    logits, found = answer(divided, pipeline, moved, following.to(gpu))
    for mine, its in zip(logits, expected, strict=True):
        torch.testing.assert_close(mine.cpu(), its, atol=1e-3, rtol=0)
    assert found[1] == told[1]
