"""The counter-based hash, against splitmix64 in Python integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokcomp.ops.hashing import uniform

WORD = 1 << 64
GOLDEN = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % WORD
    return x ^ (x >> 31)


def reference(digest: int, n: int, seed: int, stream: int) -> list[float]:
    key = mix(mix((digest + seed * GOLDEN) % WORD) ^ ((stream + 1) * 0xD1342543DE82EF95) % WORD)
    return [(mix((key + i * GOLDEN) % WORD) >> 40) / 2**24 for i in range(1, n + 1)]


def test_the_reference_is_splitmix64() -> None:
    # First outputs of the generator with state 0, as published with its C code (and in many ports).
    assert [mix(i * GOLDEN % WORD) for i in (1, 2, 3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@settings(max_examples=50, deadline=None)
@given(
    digests=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=3),
    n=st.integers(0, 20),
    seed=st.integers(-(2**70), 2**70),
    stream=st.integers(0, 1000),
)
def test_equals_the_reference(digests: list[int], n: int, seed: int, stream: int) -> None:
    numbers = uniform(torch.tensor(digests), n, seed=seed, stream=stream)
    assert numbers.dtype == torch.float32
    assert numbers.tolist() == [reference(digest, n, seed, stream) for digest in digests]


def test_rows_do_not_depend_on_neighbours_or_length() -> None:
    digest = torch.tensor([5, -7, 11])
    numbers = uniform(digest, 100, seed=1)
    assert torch.equal(numbers[1:2], uniform(digest[1:2], 100, seed=1))
    assert torch.equal(numbers[:, :10], uniform(digest, 10, seed=1))


@pytest.mark.parametrize("change", [{"seed": 1}, {"stream": 1}])
def test_seeds_and_streams_are_independent(change: dict[str, int]) -> None:
    digest = torch.arange(8)
    a, b = uniform(digest, 500, seed=0), uniform(digest, 500, **{"seed": 0, **change})
    assert (a == b).float().mean() < 0.01
    assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.06


def test_numbers_are_uniform() -> None:
    numbers = uniform(torch.arange(64), 1000, seed=0)  # neighbouring digests, the hardest case for a weak hash
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, bins=16, min=0, max=1)
    assert ((counts - 4000).square() / 4000).sum() < 40  # chi-square, 15 degrees of freedom: 40 is p = 5e-4
    assert (numbers.mean(dim=1) - 0.5).abs().max() < 0.05


def test_no_generator_is_touched() -> None:
    before = torch.get_rng_state()
    uniform(torch.arange(3), 5, seed=0)
    assert torch.equal(before, torch.get_rng_state())
