"""The benchmark of compiled decisions compares what it says; compiling itself takes minutes and is not tested."""

from __future__ import annotations

import pytest
import torch

from benchmarks.compiled import PARTS, alike, beside
from tests.docs.test_generated import load


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_part_decides_for_every_sample(name: str, batch: int) -> None:
    plain, arguments = PARTS[name]
    for side in (9, 6):
        results = plain(*arguments(batch, side, 16))
        assert all(result.shape[0] == batch and 0 < result.shape[1] <= side * side for result in results)


def test_a_choice_must_be_equal_and_a_state_nearly() -> None:
    states, chosen = torch.ones(2, 3), torch.tensor([1, 2])
    assert alike((states, chosen), (states + 1e-7, chosen))
    assert not alike((states, chosen), (states + 1e-3, chosen))
    assert not alike((states, chosen), (states, chosen + 1))
    assert not alike((states,), (states[:1],))


def test_the_first_rounds_do_not_count() -> None:
    seen: list[int] = []
    first, second = beside(lambda: seen.append(1), lambda: seen.append(2), rounds=5)
    assert seen == [1, 2] * 5
    assert first >= 0
    assert second >= 0


def test_the_table_tells_what_is_left() -> None:
    row = {"kind": "graphs", "part": "a part", "operations": 19, "kernels": 14, "library_calls": 3, "graphs": 4,
           "graphs_after_lengths": 4, "graphs_after_batch": 8, "first_seconds": 12.3, "same": True}  # fmt: skip
    time = {"kind": "time", "part": "a part", "size": "tiny", "plain_ms": 0.25, "compiled_ms": 0.5}
    machine = {"cpu": "x", "threads": 1, "cores": 2, "torch": "2", "transformers": "5"}
    told = load("hooks/performance.py").compiled(
        {"command": "c", "machine": machine, "left_out": [], "rows": [row, time]}
    )
    assert "| a part | 19 → 17 | 4 | 4 | 8 | 12 |  | 0.25 → 0.50 | yes |" in told
