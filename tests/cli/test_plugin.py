"""A strategy of somebody else's: one file and an entry point, and every command knows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tokcomp

STRATEGY = '''
import torch
from tokcomp import VISION, Selection, VisionReducer

@VISION.register("every_other")
class EveryOther(VisionReducer):
    """Keep every other vision token."""
    def reduce(self, view):
        return Selection(keep=torch.arange(0, view.n_tokens, 2).expand(view.batch_size, -1))
'''


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder as an installer leaves it."""
    folder = tmp_path / "site"
    info = folder / "every_other-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "every_other.py").write_text(STRATEGY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: every-other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tokcomp.strategies]\nevery_other = every_other\n")
    return folder


def command(installed: Path, *arguments: str) -> str:
    root = Path(tokcomp.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{root}", "COLUMNS": "160"}
    ended = subprocess.run([sys.executable, "-m", "tokcomp.cli.main", *arguments], env=environment, cwd=installed,
                           capture_output=True, text=True, check=False)  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_a_strategy_in_one_file_runs_with_the_others(installed: Path, untrained: Path, tmp_path: Path) -> None:
    assert "│ every_other " in command(installed, "list", "vision")
    quick = ["benchmark.samples=2", "benchmark.max_new_tokens=2", "measure.timing=false", "measure.memory=false"]
    mix = [
        "vision=every_other",
        "prefill=fastv",
        "cache=h2o",
        f"model.path={untrained}",
        f"hydra.run.dir={tmp_path}/out",
    ]
    command(installed, "run", *mix, *quick)
    tokens = json.loads((tmp_path / "out" / "result.json").read_text())["compressed"]["tokens"]
    assert tokens["vision_tokens"] == [72.0] * 2 + [36.0] * 6
