"""Every script under examples/ runs as it stands and does what it says."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokcomp.models import adapter

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))

SAYS = {
    "adapter": r"36 .*",
    "batch": r"\(144 -> \d+ tokens\)",
    "fine_tuning": r"step 5: loss \d",
    "second_image": r"turn 1: .*\n  144 image tokens, \d+ after the vision stage, \d+ in the last layer, whose cache holds \d+",
    "several_images": r"entering layer 0: image 0: 72, image 1: 72, image 2: 72",
    "single_image": r"vision",
    "two_turns": r"the last layer's cache: \d+ entries, then \d+, of \d+ tokens",
    "video": r"36 tokens of 4 frames, \d+ after the vision stage, \d+ in the last layer",
}


@pytest.fixture(autouse=True)
def _as_a_user(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    yield
    adapter._BUILDERS.pop("MyModel", None)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_it_runs(script: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(script)])
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    assert re.search(SAYS[script.stem], printed), printed
    assert len(script.read_text().splitlines()) < 70


def test_fine_tuning_lowers_the_loss(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "fine_tuning.py"), run_name="__main__")
    losses = [float(value) for value in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert losses[-1] < losses[0]
