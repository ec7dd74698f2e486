"""An untrained model of the embedded architecture: it says nothing sensible, but has every part of the real one."""

from __future__ import annotations

import pytest
import torch

from tokcomp.embedded.architecture import build_model
from tokcomp.embedded.processor import build_processor
from tokcomp.experiment.load import LoadedModel


@pytest.fixture(scope="session")
def loaded() -> LoadedModel:
    model = build_model(seed=0).eval()
    return LoadedModel(model, build_processor(), torch.device("cpu"), torch.float32)
