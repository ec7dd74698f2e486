from __future__ import annotations

import pytest
import torch
from torch import nn

from tokcomp.measure.memory import PeakMemory, model_bytes, peak_memory

MEGABYTE = 1_000_000


def test_the_most_that_lives_at_one_moment_counts() -> None:
    def call() -> None:
        first = torch.empty(MEGABYTE // 4)  # 1 MB
        second = first + 1  # 2 MB
        del first  # 1 MB
        third = torch.cat([second, second])  # 3 MB
        del second, third
        torch.empty(MEGABYTE // 4)

    assert peak_memory(call) == PeakMemory(before=0, increase=3 * MEGABYTE)


def test_temporaries_inside_an_operator_count() -> None:
    # A matrix product of a transposed batch makes a contiguous copy of its own.
    wide = torch.randn(8, 64, 256)

    def call() -> None:
        wide.transpose(1, 2).reshape(8 * 256, 64).sum()

    assert peak_memory(call).increase >= wide.numel() * 4


def test_what_lay_there_before_is_not_the_calls() -> None:
    big = torch.zeros(MEGABYTE)
    assert peak_memory(lambda: big.add_(1)).increase < 1000


def test_a_result_counts_even_where_it_is_kept() -> None:
    kept: list[torch.Tensor] = []
    peak = peak_memory(lambda: kept.append(torch.zeros(MEGABYTE // 4)), resident=50)
    assert peak.increase == MEGABYTE
    assert peak.peak == MEGABYTE + 50


def test_an_exception_passes_through_and_the_next_pass_is_clean() -> None:
    def fail() -> None:
        torch.zeros(MEGABYTE)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        peak_memory(fail)
    assert peak_memory(lambda: torch.zeros(250)).increase == 1000


def test_shared_parameters_count_once() -> None:
    first, second = nn.Linear(10, 10), nn.Linear(10, 10)
    apart = model_bytes(nn.Sequential(first, second))
    second.weight = first.weight
    assert apart == 2 * 110 * 4
    assert model_bytes(nn.Sequential(first, second)) == apart - 400


def test_other_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="not on meta"):
        peak_memory(lambda: None, device="meta")
