"""Expected values: the published figures named in each test, and the formulas written out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tokcomp.measure.conventions import CONVENTIONS, layer_formula, reductions
from tokcomp.measure.shape import named_shape
from tokcomp.measure.workload import Workload, dense_workload

SEVEN, THIRTEEN = named_shape("llava-1.5-7b"), named_shape("llava-1.5-13b")


def saved(shape: object, dense: Workload, compressed: Workload) -> dict[str, float]:
    """Per cent saved by convention."""
    return {row.convention: 100 * row.saved for row in reductions(shape, dense, compressed)}  # type: ignore[arg-type]


def test_the_formula_written_out() -> None:
    n, d, m = 576, 4096, 11008
    assert layer_formula(n, SEVEN) == 4 * n * d * d + 2 * n * n * d + 2 * n * d * m
    assert layer_formula(n, SEVEN, mlp_matrices=3) - layer_formula(n, SEVEN) == n * d * m


def test_the_gated_formula_is_half_of_the_exact_count_of_a_llama_layer() -> None:
    """Multiply-adds against FLOPs; LLaVA-1.5 has as many key/value heads as heads."""
    dense = dense_workload(SEVEN, image_tokens=576, text_tokens=40)
    rows = {row.convention: row for row in reductions(SEVEN, dense, dense)}
    assert 2 * rows["gated"].dense == rows["prefill"].dense


@pytest.mark.parametrize(
    ("shape", "layer", "published", "vision_only"), [(SEVEN, 3, 43, 46), (THIRTEEN, 2, 45, 48)], ids=["7b", "13b"]
)
def test_fastv_counts_the_whole_sequence(shape: object, layer: int, published: float, vision_only: float) -> None:
    """FastV: K=3, R=50 % costs 57 % on 7B, K=2, R=50 % saves 45 % on 13B; the LLaVA prompt has about 40 text tokens."""
    dense = dense_workload(shape, image_tokens=576, text_tokens=40)  # type: ignore[arg-type]
    layers = len(dense.layer_tokens)
    cut = replace(dense, layer_tokens=(616,) * layer + (328,) * (layers - layer))
    by = saved(shape, dense, cut)
    assert round(by["fastv"]) == published
    assert round(by["fastv-vision"]) == vision_only


def test_mustdrop_headline_with_text_in_the_count() -> None:
    """88.5 % of the FLOPs at 92.2 % of the tokens: 45 of 576 in every layer and 26 text tokens."""
    assert pytest.approx(0.922, abs=5e-4) == 1 - 45 / 576
    dense = dense_workload(SEVEN, image_tokens=576, text_tokens=26)
    image = replace(dense.images[0], tower_tokens=(577,) + (46,) * 23, projector_tokens=45)
    by = saved(SEVEN, dense, replace(dense, layer_tokens=(71,) * 32, images=(image,)))
    assert by["fastv"] == pytest.approx(88.5, abs=0.05)
    assert by["prefill"] == pytest.approx(88.5, abs=0.1)
    assert by["first-token"] == pytest.approx(88.5, abs=0.1)
    assert by["fastv-vision"] == pytest.approx(92.4, abs=0.05)


def test_mustdrop_headline_with_the_authors_average() -> None:
    """Mean 45 at the outputs of 32 layers, 315 tokens until layer 2 has run, no text, the tower counted."""
    dense = dense_workload(SEVEN, image_tokens=576, text_tokens=0)
    left = (45 * 32 - 2 * 315) / 30
    image = replace(dense.images[0], tower_tokens=(577,) + (316,) * 23, projector_tokens=315)
    by = saved(SEVEN, dense, replace(dense, layer_tokens=(315,) * 3 + (left,) * 29, images=(image,)))
    assert by["first-token"] == pytest.approx(88.5, abs=0.05)


def test_every_convention_agrees_that_nothing_is_saved_on_the_same_work() -> None:
    dense = dense_workload(SEVEN, image_tokens=576, text_tokens=64, new_tokens=4)
    assert set(saved(SEVEN, dense, dense).values()) == {0.0}
    assert [row.convention for row in reductions(SEVEN, dense, dense)] == [way.name for way in CONVENTIONS]


def test_the_whole_answer_saves_less_than_the_first_token() -> None:
    dense = dense_workload(SEVEN, image_tokens=576, text_tokens=64, new_tokens=65)
    cut = replace(dense, layer_tokens=(128,) * 32)
    by = saved(SEVEN, dense, cut)
    assert by["answer"] < by["first-token"] < by["prefill"]


def test_text_alone_has_nothing_to_reduce() -> None:
    text = dense_workload(SEVEN, image_tokens=0, text_tokens=64, images=0)
    with pytest.raises(ValueError, match="no vision tokens"):
        reductions(SEVEN, text, text)
