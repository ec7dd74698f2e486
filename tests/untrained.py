"""A checkpoint of the embedded model's architecture with untrained weights: what runs are tested on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokcomp.embedded.architecture import build_model
from tokcomp.embedded.processor import build_processor


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the checkpoint."""
    folder = tmp_path_factory.mktemp("untrained")
    build_model().save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return folder
