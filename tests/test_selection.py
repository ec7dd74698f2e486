"""A selection's indices and its mask say the same, and are worked out when somebody asks for them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokcomp import Selection
from tokcomp.deferred import deferrable, deferred


def expected(rows: list[list[int]]) -> list[list[int]]:
    width = max(map(len, rows))
    return [row + [-1] * (width - len(row)) for row in rows]


@given(mask=st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1)))
def test_a_mask_names_its_true_entries(mask: list[list[bool]]) -> None:
    rows = [[index for index, kept in enumerate(row) if kept] for row in mask]
    selection = Selection.from_mask(torch.tensor(mask))
    assert selection.keep.tolist() == expected(rows)
    assert selection.ragged == (len(set(map(len, rows))) > 1)
    assert selection.ascending
    assert selection._mask.tolist() == mask


@given(
    scores=st.integers(1, 6).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 3), min_size=n, max_size=n), min_size=1)
    ),
    seed=st.integers(0, 99),
    one=st.booleans(),
    order=st.sampled_from(["position", "score"]),
)
def test_the_best_are_the_first_of_a_stable_order(scores: list[list[int]], seed: int, one: bool, order: str) -> None:
    table = torch.tensor(scores)
    counts = torch.randint(0, table.shape[1] + 2, (len(scores),), generator=torch.Generator().manual_seed(seed))
    rows = []
    for row, count in zip(scores, counts[:1].tolist() * len(scores) if one else counts.tolist(), strict=True):
        best = sorted(range(len(row)), key=lambda index, row=row: (-row[index], index))[:count]
        rows.append(sorted(best) if order == "position" else best)
    selection = Selection.top_k(table, int(counts[0]) if one else counts.clamp(max=table.shape[1]), order)  # type: ignore[arg-type]
    assert selection.keep.tolist() == expected(rows)
    if selection._mask is not None:
        assert selection._mask.tolist() == [[index in row for index in range(table.shape[1])] for row in rows]
    assert (selection._mask is None) == (one or order == "score")


def test_a_changed_copy_has_no_mask() -> None:
    selection = Selection.from_mask(torch.tensor([[True, False, True]]))
    assert replace(selection, keep=torch.tensor([[1]]))._mask is None
    with pytest.raises(ValueError, match="mask"):
        replace(selection, _mask=None)


def test_what_nobody_asks_for_is_not_worked_out() -> None:
    made: list[str] = []

    @deferrable("slow", "other")
    @dataclass(frozen=True)
    class Held:
        slow: int
        other: int = 7

    held = Held(deferred(lambda: made.append("slow") or 3))
    assert not made
    assert (held.slow, held.slow, held.other) == (3, 3, 7)
    assert made == ["slow"]
    assert replace(held, slow=4).slow == 4
    assert held == Held(3)
    with pytest.raises(AttributeError):
        _ = Held.slow
