"""The picture of one question, with every combination of stages, and what it refuses."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokcomp import Pipeline
from tokcomp.errors import CompatibilityError, ConfigurationError
from tokcomp.experiment.load import LoadedModel
from tokcomp.report.view import overlay, render

STAGES = {
    "vision": (None, {"name": "mustdrop", "threshold": 0.2}, {"name": "random", "keep_tokens": 40}),
    "prefill": (None, "mustdrop", {"name": "fastv", "keep_tokens": 12}),
    "cache": (None, {"name": "h2o", "heavy_tokens": 8, "recent_tokens": 8}),
}
MIXES = [dict(zip(STAGES, mix, strict=True)) for mix in product(*STAGES.values())]


def picture(width: int = 150, height: int = 110) -> Image.Image:
    ramp = np.linspace(0, 255, width * height).reshape(height, width)
    return Image.fromarray(np.stack([ramp, ramp[::-1], ramp[:, ::-1]], axis=2).astype(np.uint8))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def name(mix: dict[str, Any]) -> str:
    return "+".join(
        getattr(s, "name", None) or (s["name"] if isinstance(s, dict) else s or "none") for s in mix.values()
    )


@pytest.mark.parametrize("mix", MIXES, ids=name)
def test_every_combination_of_stages(loaded: LoadedModel, tmp_path: Path, mix: dict[str, Any]) -> None:
    out = tmp_path / "new" / "view.png"
    told = render(picture(), "which digit is red ?", mix, loaded, out, max_new_tokens=4)
    drawn = pixels(out)
    assert min(drawn.shape[:2]) > 500
    assert drawn.std() > 10  # something stands on the page
    with Pipeline(**mix).attach(loaded.model) as trace:
        loaded.generate(loaded.inputs(["which digit is red ?"], [[picture()]]), 4)
    record = trace.last
    assert told["image_tokens"] == 144
    assert told["after_vision"] == record.after_vision[0]
    assert told["vision_tokens"] == [layer[0] for layer in record.vision_tokens]
    assert told["equivalent_tokens"] == record.equivalent_tokens[0]
    if mix == dict.fromkeys(STAGES):
        assert told["same"]
        assert told["kv_entries"] == told["kv_entries_dense"]
    if mix["cache"]:
        assert told["kv_entries"] <= 16 * 8


@pytest.mark.parametrize("size", [(1, 1), (3000, 40), (97, 801)])
def test_any_size_of_image(loaded: LoadedModel, tmp_path: Path, size: tuple[int, int]) -> None:
    told = render(
        picture(*size), "how many digits ?", {"prefill": "fastv"}, loaded, tmp_path / "v.png", max_new_tokens=2
    )
    assert told["vision_tokens"] == [144, 144, *[72] * 6]


def test_text_that_looks_like_markup(loaded: LoadedModel, tmp_path: Path) -> None:
    question = "what costs $5_{x} and $6 \\frac ? " + "word " * 300
    assert render(picture(), question, {}, loaded, tmp_path / "v.png", max_new_tokens=2)["same"]


def test_an_unknown_strategy_writes_nothing(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'fastv'"):
        render(picture(), "?", {"prefill": "fastw"}, loaded, tmp_path / "v.png")
    with pytest.raises(CompatibilityError, match="8 layers"):
        render(picture(), "?", {"prefill": {"name": "fastv", "layer": 20}}, loaded, tmp_path / "v.png")
    assert not list(tmp_path.iterdir())


def test_a_model_by_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="tinny"):
        render(picture(), "?", {}, "tinny", tmp_path / "v.png")


def test_the_settings_of_matplotlib_are_the_callers_again(loaded: LoadedModel, tmp_path: Path) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    render(picture(), "which digit is red ?", {}, loaded, tmp_path / "v.png", max_new_tokens=1)
    assert dict(mpl.rcParams) == before


def test_overlay_shows_one_column_per_image(loaded: LoadedModel, tmp_path: Path) -> None:
    images, questions = [picture(), picture(90, 200)], ["which digit is red ?", "how many digits ?"]
    spec = {"vision": {"name": "random", "keep_tokens": 30}}
    stories = overlay(images, questions, spec, loaded, tmp_path / "two.png", max_new_tokens=2)
    assert [story.after_vision for story in stories] == [30, 30]
    overlay(images[:1], questions[:1], {"cache": "h2o"}, loaded, tmp_path / "one.png", max_new_tokens=2)
    assert pixels(tmp_path / "two.png").shape[1] > 1.5 * pixels(tmp_path / "one.png").shape[1]
    with pytest.raises(ConfigurationError, match="at least one stage"):
        overlay(images, questions, {}, loaded, tmp_path / "none.png")
