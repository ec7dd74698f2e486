"""Cosine similarities, against torch's own and against loops."""

from __future__ import annotations

import itertools

import pytest
import torch

from tokcomp.ops.similarity import mean_cosine, nearest, unit


def test_unit_length_and_zero() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-12, 0.0]])
    assert unit(vectors).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 0.0], [1.0, 0.0]]
    assert unit(vectors, floor=1e-8)[2, 0] == pytest.approx(1e-4)
    assert unit(vectors.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("shape", [(2, 3), (2, 2, 9), (1, 4, 3, 4)])
def test_mean_cosine_equals_the_pairs(shape: tuple[int, ...]) -> None:
    vectors = torch.randn(*shape, 6) + 0.5
    w = shape[-1]
    pairs = [torch.cosine_similarity(vectors[..., i, :], vectors[..., j, :], dim=-1)
             for i, j in itertools.permutations(range(w), 2)]  # fmt: skip
    torch.testing.assert_close(mean_cosine(vectors), torch.stack(pairs).mean(0), atol=1e-6, rtol=1e-6)


def test_mean_cosine_counts_zero_vectors_as_unlike_everything() -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert mean_cosine(vectors) == pytest.approx(1 / 3)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_nearest_equals_the_loop(chunk: int) -> None:
    queries, candidates = torch.randn(2, 5, 4), torch.randn(2, 3, 4)
    allowed = torch.tensor([[True, False, True], [True, True, True]])
    cosine, index = nearest(queries, candidates, allowed, chunk=chunk)
    for row, query in itertools.product(range(2), range(5)):
        scores = {
            j: float(torch.cosine_similarity(queries[row, query], candidates[row, j], dim=0))
            for j in range(3)
            if allowed[row, j]
        }
        best = max(scores, key=scores.__getitem__)
        assert index[row, query] == best
        assert cosine[row, query] == pytest.approx(scores[best], abs=1e-6)


def test_nearest_prefers_the_lower_index_and_knows_when_there_is_none() -> None:
    queries = torch.tensor([[[1.0, 0.0]]])
    candidates = torch.tensor([[[0.0, 1.0], [2.0, 0.0], [1.0, 0.0]]])
    assert nearest(queries, candidates, torch.ones(1, 3, dtype=torch.bool))[1].item() == 1
    assert nearest(queries, candidates, torch.zeros(1, 3, dtype=torch.bool))[0].item() == -torch.inf
