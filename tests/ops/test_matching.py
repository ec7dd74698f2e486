"""Bipartite soft matching, against the published code's vectors and a loop of the paper's rule."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.golden_cases import folders, group, meta
from tokcomp import Selection
from tokcomp.ops.matching import bipartite_matching, merge_schedule
from tokcomp.ops.merging import apply_selection, compose_source


def membership(source: Tensor, n_out: int) -> Tensor:
    """``[b, n0]`` slots as 0/1 rows ``[b, n_out, n0]``."""
    return (source[:, None] == torch.arange(n_out)[:, None]).float()


def with_prefix(prefix: Tensor, patches: Tensor) -> Tensor:
    return torch.cat([prefix, patches], dim=1)


UNITS = [(folder, case) for folder in folders("tome_units") for case in meta(folder).get("bsm", {})]


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "case"), UNITS, ids=lambda value: getattr(value, "name", value))
def test_golden_units(folder: Path, case: str) -> None:
    params, vectors = meta(folder)["bsm"][case], group(folder, case)
    p = int(params["class_token"]) + int(params.get("distill_token", False))
    metric, x = vectors["metric"][:, p:], vectors["x"]
    b, n = metric.shape[:2]
    selection = bipartite_matching(metric, params["r_requested"], n_prefix=p)
    for size, y, size_out in (("", "y", "size"), ("size_in2", "y2", "size2")):
        sizes = vectors[size][..., 0] if size else torch.ones(b, p + n)
        merged, merged_sizes = apply_selection(x[:, p:], sizes[:, p:], selection)
        torch.testing.assert_close(with_prefix(x[:, :p], merged), vectors[y], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(with_prefix(sizes[:, :p], merged_sizes), vectors[size_out][..., 0])
    k = selection.keep.shape[1]
    source = compose_source(torch.arange(n).expand(b, n), selection, n)
    if "source" in vectors:
        assert torch.equal(membership(source, k), vectors["source"][:, p:, p:].float())
    if "unmerged_y" in vectors:
        back = vectors["y"][:, p:].gather(1, source[..., None].expand(-1, -1, x.shape[-1]))
        torch.testing.assert_close(with_prefix(x[:, :p], back), vectors["unmerged_y"], atol=1e-6, rtol=1e-5)


CHAINS = [(folder, case["name"]) for folder in folders("tome_chains") for case in meta(folder)["cases"]]


@pytest.mark.golden
@pytest.mark.parametrize(("folder", "name"), CHAINS, ids=lambda value: getattr(value, "name", value))
def test_golden_chains(folder: Path, name: str) -> None:
    params = next(case["params"] for case in meta(folder)["cases"] if case["name"] == name)
    vectors = group(folder, name)
    p = int(params["class_token"]) + int(params.get("distill_token", False))
    x, b, total = vectors["x0"], *vectors["x0"].shape[:2]
    sizes, source = torch.ones(b, total), torch.arange(total - p).expand(b, total - p)
    for step in itertools.takewhile(lambda i: f"metric{i}" in vectors, itertools.count()):
        n = x.shape[1] - p
        selection = bipartite_matching(vectors[f"metric{step}"][:, p:], params["r"], n_prefix=p)
        merged, merged_sizes = apply_selection(x[:, p:], sizes[:, p:], selection)
        x, sizes = with_prefix(x[:, :p], merged), with_prefix(sizes[:, :p], merged_sizes)
        source = compose_source(source, selection, n)
        torch.testing.assert_close(x, vectors[f"x{step + 1}"], atol=1e-5, rtol=1e-5)
        assert torch.equal(sizes, vectors[f"size{step + 1}"][..., 0])
        assert torch.equal(membership(source, x.shape[1] - p), vectors[f"source{step + 1}"][:, p:, p:])
        unmerged = vectors.get(f"unmerged{step + 1}")
        if unmerged is not None:
            back = x[:, p:].gather(1, source[..., None].expand(-1, -1, x.shape[-1]))
            torch.testing.assert_close(with_prefix(x[:, :p], back), unmerged, atol=1e-5, rtol=1e-5)


SCHEDULES = [case for folder in folders("tome_chains") for case in meta(folder).get("parse_r", [])]


@pytest.mark.golden
@pytest.mark.parametrize("case", SCHEDULES, ids=lambda case: f"{case['num_layers']}-{case['r']}")
def test_golden_schedules(case: dict[str, Any]) -> None:
    r, depth = case["r"], case["num_layers"]
    if isinstance(r, list) and len(r) == 2 and isinstance(r[1], float):  # the code's pair (r, f)
        assert merge_schedule(r[0], depth, inflect=r[1]) == tuple(case["result"])
    else:
        assert merge_schedule(r, depth) == tuple(case["result"])


def loop_matching(
    metric: Tensor, r: int, n_prefix: int, locked: list[bool]
) -> tuple[list[int], dict[int, int], list[float]]:
    """Section 3 of the paper for one image, token by token: kept tokens in order, where sources went, and the numbers
    whose order decided."""
    n = len(metric)
    total = n_prefix + n
    cosine = torch.cosine_similarity(metric[:, None].double(), metric[None].double(), dim=-1)
    in_a = [i for i in range(n) if (i + n_prefix) % 2 == 0]
    in_b = [i for i in range(n) if (i + n_prefix) % 2 == 1]
    targets, scores, decisive = {}, {}, []
    for i in in_a:
        candidates = [j for j in in_b if not locked[j]]
        if locked[i] or not candidates:
            continue
        targets[i] = max(candidates, key=lambda j: float(cosine[i, j]))
        scores[i] = float(cosine[i, targets[i]])
        decisive += sorted(float(cosine[i, j]) for j in candidates)[-2:]
    r = min(r, (total - n_prefix - sum(locked)) // 2, len(scores))
    if r <= 0:
        return list(range(n)), {}, []
    ranked = sorted(scores, key=lambda i: -scores[i])
    merged = {i: targets[i] for i in ranked[:r]}
    unmerged = ranked[r:] + [i for i in in_a if i not in scores]
    if n_prefix:
        unmerged.sort()
    return unmerged + in_b, merged, decisive + list(scores.values())


def near_tie(numbers: list[float]) -> bool:
    ordered = sorted(set(numbers))
    return any(b - a < 1e-5 for a, b in itertools.pairwise(ordered))


@settings(max_examples=80, deadline=None)
@given(
    counts=st.lists(st.integers(1, 14), min_size=1, max_size=3),
    r=st.integers(0, 9),
    n_prefix=st.integers(0, 2),
    locking=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_equals_the_loop(counts: list[int], r: int, n_prefix: int, locking: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    b, n = len(counts), max(counts)
    metric = torch.randn(b, n, 5, generator=generator)
    valid = torch.arange(n) < torch.tensor(counts)[:, None]
    locked = (torch.rand(b, n, generator=generator) < 0.3) & valid & locking
    metric[~valid] = 1e4
    selection = bipartite_matching(metric, r, n_prefix=n_prefix, valid=valid, locked=locked)
    selection.check(n, batch_size=b, valid=valid)
    for row, count in enumerate(counts):
        kept, merged, decisive = loop_matching(metric[row, :count], r, n_prefix, locked[row, :count].tolist())
        assume(not near_tie(decisive))
        assert selection.keep[row].tolist() == kept + [-1] * (selection.keep.shape[1] - len(kept))
        homes = [kept.index(merged.get(token, token)) for token in range(count)]
        assert selection.assign[row].tolist() == homes + [-1] * (n - count)


@pytest.mark.parametrize(
    ("n", "n_prefix", "left"), [(16, 1, 8), (17, 0, 9), (1, 0, 1), (1, 1, 1), (2, 1, 1), (2, 0, 1)]
)
def test_at_most_half_of_the_tokens_merge(n: int, n_prefix: int, left: int) -> None:
    selection = bipartite_matching(torch.randn(2, n, 4), 100, n_prefix=n_prefix)
    assert selection.keep.shape == (2, left)


def test_equal_similarities_merge_the_lower_index() -> None:
    selection = bipartite_matching(torch.ones(1, 6, 3), 2)
    assert selection.keep.tolist() == [[4, 1, 3, 5]]
    assert selection.assign.tolist() == [[1, 1, 1, 2, 0, 3]]


def test_nothing_to_merge_keeps_the_order() -> None:
    metric = torch.randn(2, 7, 4)
    assert bipartite_matching(metric, 0).keep.tolist() == [list(range(7))] * 2
    everything = torch.ones(2, 7, dtype=torch.bool)
    assert bipartite_matching(metric, 3, locked=everything).keep.tolist() == [list(range(7))] * 2


def test_returns_a_selection_weighted_by_sizes() -> None:
    selection = bipartite_matching(torch.randn(1, 4, 2), 1)
    assert isinstance(selection, Selection)
    assert selection.weight is None


@pytest.mark.parametrize("r", range(1, 30, 7))
@pytest.mark.parametrize("inflect", [-1.0, -0.5, 0.0, 0.3, 1.0])
def test_schedules_are_linear_and_keep_the_sum(r: int, inflect: float) -> None:
    schedule = merge_schedule(r, 12, inflect=inflect)
    low = int(r * (1 - inflect))
    assert schedule[0] == low
    assert schedule[-1] == 2 * r - low
    assert sorted(schedule, reverse=inflect < 0) == list(schedule)
    assert 12 * r - 12 <= sum(schedule) <= 12 * r  # each entry is rounded down by less than one


def test_schedule_edges() -> None:
    assert merge_schedule(5, 1, inflect=-1.0) == (5,)
    assert merge_schedule([4, 0, 3], 4) == (4, 0, 3, 0)
    with pytest.raises(ValueError, match="5 entries, but there are 4 blocks"):
        merge_schedule([1] * 5, 4)
