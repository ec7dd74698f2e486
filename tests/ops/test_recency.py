"""First and last entries of ragged rows."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokcomp.ops.recency import first, last


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=3), st.data())
def test_counts_only_what_is_valid(rows: list[list[bool]], data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.integers(0, 8), min_size=len(rows), max_size=len(rows)))
    valid = torch.tensor(rows)
    for row, n in enumerate(numbers):
        places = [place for place, real in enumerate(rows[row]) if real]
        assert first(valid, torch.tensor(numbers))[row].nonzero()[:, 0].tolist() == places[:n]
        assert last(valid, torch.tensor(numbers))[row].nonzero()[:, 0].tolist() == (places[-n:] if n else [])
        assert torch.equal(first(valid, n)[row], first(valid, torch.tensor(numbers))[row])
        assert torch.equal(last(valid, n)[row], last(valid, torch.tensor(numbers))[row])
