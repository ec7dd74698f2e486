"""PyramidKV, against golden vectors of both published codes and against the promise of its own rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.cache.views import prompt_view, random_view
from tests.golden_cases import cases, group, meta
from tokcomp.cache.pyramidkv import PyramidKV
from tokcomp.cache.snapkv import SnapKV
from tokcomp.ops.pyramid import pyramid_budgets

TABLES = cases("pyramidkv", having="table")
LAYERS = cases("pyramidkv", having="kept_idx")


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), TABLES, ids=lambda value: getattr(value, "name", value))
def test_golden_budgets(folder: Path, case: str) -> None:
    table, told = group(folder, case)["table"], meta(folder)["cases"][case]
    for length, percent, depth, beta, layer, n in table.tolist():
        if "EffiVLM" in told["source"]:
            mean = max(1, int(length * (percent / 100)))
            window, rounding = max(1, int(mean * told["params"]["window_size_budgets"])), "original"
        else:
            mean, window, rounding = length * (1 - percent / 100), told["params"]["window_size"], "kvpress"
        numbers = (torch.tensor([number], dtype=torch.double) for number in (mean, length, window))
        layers = pyramid_budgets(*numbers, depth=depth, beta=beta, rounding=rounding)[0].tolist()
        assert layers[layer] == n, (length, percent, depth, beta, layer)


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), LAYERS, ids=lambda value: getattr(value, "name", value))
def test_golden_layers(folder: Path, case: str) -> None:
    golden, told = group(folder, case), meta(folder)["cases"][case]
    params, effivlm = told["params"], "EffiVLM" in told["source"]
    length = params["L"]
    share = params["budgets"] if effivlm else 1 - params["compression_ratio"]
    window = params["window"] if effivlm else params["window_size"]
    policy = PyramidKV(keep_tokens=max(1, int(length * share + 1e-6)), window=window, kernel=params["kernel_size"],
                       beta=params["beta"], rounding="original" if effivlm else "kvpress")  # fmt: skip
    view = prompt_view(policy, golden["k"], golden["v"], golden["q"], layer=params["layer_idx"],
                       depth=params["num_hidden_layers"])  # fmt: skip
    scores = policy.score(view)[..., : length - window]
    scale = 1 if effivlm else window * params["H"] // params["Hkv"]
    torch.testing.assert_close(scores / scale, golden["scores"][..., : length - window], atol=1e-4, rtol=0)
    assert torch.equal(policy.after_prefill(view).keep, golden["kept_idx"])


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(1, 900), share=st.floats(0.01, 1), depth=st.integers(1, 40), beta=st.floats(1, 40),
    window=st.integers(1, 64),
)  # fmt: skip
def test_the_layers_hold_what_was_stated(length: int, share: float, depth: int, beta: float, window: int) -> None:
    mean = max(1, int(share * length))
    numbers = (torch.tensor([number]) for number in (mean, length, window))
    layers = pyramid_budgets(*numbers, depth=depth, beta=beta)[0].tolist()
    assert sum(layers) == depth * mean
    assert layers == sorted(layers, reverse=True)
    assert 1 <= layers[-1] <= layers[0] <= length
    assert layers[-1] >= min(window + 1, mean)


def test_the_line() -> None:
    numbers = (torch.tensor([number]) for number in (48, 96, 4))
    assert pyramid_budgets(*numbers, depth=8, beta=8).tolist() == [[90, 78, 66, 54, 42, 30, 18, 6]]


def test_every_layer_chooses_as_snapkv_with_its_budget() -> None:
    for layer in range(4):
        pyramid = PyramidKV(keep_tokens=12, beta=4, window=2)
        view = random_view([40, 25], policy=pyramid, layer=layer, depth=4)
        numbers = (torch.tensor([number]) for number in (12, 40, 2))
        budget = pyramid_budgets(*numbers, depth=4, beta=4)[0, layer].item()
        alone = SnapKV(keep_tokens=int(budget), window=2).after_prefill(view)
        assert torch.equal(pyramid.after_prefill(view).keep[0], alone.keep[0])


def test_refuses_fields_out_of_range() -> None:
    with pytest.raises(ValidationError, match="give an odd one"):
        PyramidKV(kernel=2)
    with pytest.raises(ValidationError, match="beta"):
        PyramidKV(beta=0.5)
