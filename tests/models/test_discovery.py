"""A model that no adapter knows works where its parts have their usual names; else one line says what is missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.families import families, models
from tests.models.naive import hidden_of, masked
from tokcomp import Pipeline
from tokcomp.errors import DiscoveryWarning, FeatureError, UnsupportedError
from tokcomp.models import adapter


@pytest.fixture
def _nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter.find_adapter(models("llava"))  # everything is registered
    known = {name: build for name, build in adapter._BUILDERS.items() if "Llava" not in name and "Aya" not in name}
    monkeypatch.setattr(adapter, "_BUILDERS", known)


@pytest.mark.usefixtures("_nobody_knows")
@pytest.mark.filterwarnings("ignore::tokcomp.errors.DiscoveryWarning")
@torch.no_grad()
def test_the_common_layout_is_found() -> None:
    model, sample = models("llava"), families()["llava"].sample(2, 0)
    pipeline = Pipeline(vision={"name": "uniform", "keep_ratio": 0.5})
    attached = pipeline.attach(model)
    with pytest.warns(DiscoveryWarning, match="no adapter knows LlavaForConditionalGeneration"), attached as trace:
        hidden = hidden_of(model, sample)[0]
    reference, alive = masked(model, sample, [layer[0] for layer in trace.last.kept], pipeline)
    torch.testing.assert_close(hidden[alive], reference[alive], atol=1e-4, rtol=0)


@pytest.mark.usefixtures("_nobody_knows")
@pytest.mark.filterwarnings("ignore::tokcomp.errors.DiscoveryWarning")
@torch.no_grad()
def test_a_projector_that_folds_patches_is_refused_at_the_first_image() -> None:
    model, sample = models("aya_vision"), families()["aya_vision"].sample(1, 0)
    with Pipeline(vision="uniform").attach(model), pytest.raises(FeatureError, match="but the images give 64 tokens"):
        model(**sample)


@pytest.mark.usefixtures("_nobody_knows")
def test_what_is_missing_is_named() -> None:
    model: Any = families()["llava"].build("sdpa")
    del model.model.multi_modal_projector
    with pytest.raises(UnsupportedError, match=r"no multi_modal_projector or mm_projector.*register_adapter"):
        Pipeline(vision="uniform").attach(model).__enter__()
