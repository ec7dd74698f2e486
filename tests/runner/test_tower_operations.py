"""How many operations the vision stage gives the device: at batch 1 a prefill waits for the host that gives them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.operations import counted
from tests.tiny_models import llava, pixels, prompt
from tokcomp import Pipeline
from tokcomp.types import debug_checks


@pytest.fixture(scope="module")
def model() -> Any:
    return llava()


def operations(model: Any, samples: int, vision: Any) -> int:
    ids = prompt(36, 3, 5).expand(samples, -1)
    images = pixels(samples).to(model.dtype)
    with debug_checks(False), Pipeline(vision=vision).attach(model):
        return counted(lambda: model(input_ids=ids, pixel_values=images, logits_to_keep=1))


@pytest.mark.parametrize(("samples", "dtype", "most"), [(1, "float32", 24), (1, "bfloat16", 25), (3, "float32", 26)])
def test_a_block_of_tome(model: Any, samples: int, dtype: str, most: int) -> None:
    """What one more block that merges costs on top of the block's own operations."""
    model.to(getattr(torch, dtype))
    two, three = (operations(model, samples, {"name": "tome", "r": [1] * blocks}) for blocks in (2, 3))
    assert 0 < three - two <= most


@pytest.mark.parametrize(("samples", "most"), [(1, 150), (3, 160)])
def test_mustdrop(model: Any, samples: int, most: int) -> None:
    """Merging, key tokens, and what the prompt is shortened by."""
    model.float()
    own = operations(model, samples, "mustdrop") - operations(model, samples, "none")
    assert 0 < own <= most
