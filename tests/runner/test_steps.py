"""What a decoding step on a compressed cache gives the device to do beside the model's own work: little, no more in a deeper
model, and never a question to wait for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.operations import counted
from benchmarks.pipelines import mustdrop, named_pipelines
from benchmarks.shapes import TINY, Shape, build, prompt
from benchmarks.sides import Prefill, Step
from tokcomp import Pipeline
from tokcomp.types import debug_checks

CPU = torch.device("cpu")
SHAPES = {depth: replace(TINY, name=f"{depth} layers", layers=depth, kv_heads=2) for depth in (16, 32)}
MOST = {  # operations of a step beyond the plain model's, of one sample and of a batch whose samples keep different numbers
    "fastv (K=2, half)": (0, 0),
    "mustdrop (three stages)": (12, 25),
    "h2o": (30, 30),
    "streaming_llm": (45, 45),
    "mustdrop+h2o": (60, 90),
    "tome+fastv+h2o": (35, 35),
    "mustdrop+streaming_llm": (90, 225),  # layers between two cuts number their entries in their own way
}


@cache
def model(depth: int) -> Any:
    return build(SHAPES[depth], CPU, torch.float32)


def inputs(shape: Shape, batch: int) -> dict[str, Tensor]:
    return prompt(shape, batch, 16, CPU, torch.float32)


def pipelines(model: Any, pixel_values: Tensor) -> dict[str, Pipeline]:
    streaming = Pipeline(**{**mustdrop(model, pixel_values), "cache": "streaming_llm"})
    return {**named_pipelines(model, pixel_values), "mustdrop+streaming_llm": streaming}


@contextmanager
def step_of(name: str | None, depth: int, batch: int) -> Iterator[Step]:
    """A step behind a prompt, the one after the first (which finds the layers as the prefill left them)."""
    given = inputs(SHAPES[depth], batch)
    pipeline = None if name is None else pipelines(model(depth), given["pixel_values"])[name]
    prefill = Prefill(model(depth), given, pipeline)
    with debug_checks(False), prefill.prepared():
        step = Step(model(depth), prefill())
        step()
        yield step


@cache
def operations(name: str | None, depth: int, batch: int) -> int:
    with step_of(name, depth, batch) as step:
        return counted(step.forward)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", MOST)
def test_a_step_has_few_operations_of_its_own(name: str, batch: int) -> None:
    own = operations(name, 16, batch) - operations(None, 16, batch)
    assert own <= MOST[name][batch > 1]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", MOST)
def test_a_deeper_model_has_no_more_of_them(name: str, batch: int) -> None:
    shallow, deep = (operations(name, depth, batch) - operations(None, depth, batch) for depth in (16, 32))
    assert (
        deep - shallow < 4
    )  # filters act in more layers, so that there are more lengths; nothing is done layer by layer


class Looks(TorchFunctionMode):
    """Notes what would wait for a device."""

    ASK = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero", "equal", "cpu")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.ASK:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


class Values(TorchDispatchMode):
    """Notes operations whose result the host has to know."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def asked(call: Callable[[], Any]) -> list[str]:
    with torch.no_grad(), Values() as values, Looks() as looks:
        call()
    return values.found + looks.found


def test_a_question_is_noticed() -> None:
    assert asked(lambda: int(torch.ones(1)))
    assert asked(lambda: torch.ones(2).tolist())


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", [name for name in MOST if name != "mustdrop+streaming_llm"])
def test_a_step_does_not_wait_for_the_device(name: str, batch: int) -> None:
    with step_of(name, 16, batch) as step:
        assert asked(step.forward) == []


def test_a_padded_step_that_looks_at_no_scores_does_not_wait_either() -> None:
    with step_of("mustdrop+streaming_llm", 16, 4) as step:
        assert asked(step.forward) == []
