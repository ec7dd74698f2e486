"""Shared by all tests: one thread per worker, debug checks on, the golden folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tokcomp.types import debug_checks

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)

GOLDEN = Path(os.environ.get("TOKCOMP_GOLDEN", Path(__file__).parent / "golden"))


@pytest.fixture(autouse=True)
def _checked_and_seeded() -> Iterator[None]:
    """Every selection that the runner applies is checked, and no test depends on another's random numbers."""
    torch.default_generator.manual_seed(0)  # torch.manual_seed prepares for devices, which costs milliseconds per test
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)
    with debug_checks():
        yield
