"""These tests need a CUDA device and are skipped elsewhere."""

from __future__ import annotations

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default a patch embedding's convolution rounds its inputs to TF32, which moves logits by up to several hundredths."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
