"""The notebooks run from top to bottom; what is committed was executed, is small, and tells nothing of a machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from tests.docs.test_generated import load

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def test_they_are_found() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["small_ablation", "token_anatomy"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_with_its_outputs(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(output.get("output_type") == "display_data" for cell in cells for output in cell["outputs"]) >= 2
    assert not [output for cell in cells for output in cell["outputs"] if output.get("output_type") == "error"]
    assert len(text) < 400_000
    assert not re.findall(r"/(?:home|root|Users|tmp|work)/", text)


def test_the_page_has_all_of_it() -> None:
    hook = load("hooks/notebooks.py")
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {"cell_type": "code", "source": ["1 + 1"], "outputs": [{"data": {"text/plain": ["2"]}}, {"text": ["said\n"]}]},
        {
            "cell_type": "code",
            "source": ["plot()"],
            "outputs": [{"data": {"image/png": "AAAA", "text/plain": "<Figure>"}}],
        },
    ]
    page, pictures = hook.as_markdown({"cells": cells}, "mine")
    assert page.startswith("# Title\ntext\n\n*This is `examples/mine.ipynb`")
    assert "```python\n1 + 1\n```\n\n```text\n2\n```\n\n```text\nsaid\n```" in page
    assert "](mine-0.png)" in page
    assert "<Figure>" not in page
    assert pictures == {"mine-0.png": b"\0\0\0"}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nbclient", reason="notebooks need the extra 'docs' of tokcomp")
    monkeypatch.setenv("SAMPLES", "4")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = load("notebooks.py").executed(path)
    assert all(cell["outputs"] for cell in notebook.cells[-3:] if cell.cell_type == "code")
