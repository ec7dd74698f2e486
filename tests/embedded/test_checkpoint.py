"""A checkpoint that cannot be continued is refused by name in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tokcomp.embedded.train import main
from tokcomp.embedded.training.checkpoint import CheckpointError, load_checkpoint, load_for_run, save_checkpoint


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "vision.checkpoint"
    save_checkpoint(path, {"run": {"steps": 3, "seed": 0}, "weight": torch.arange(1000)})
    return path


def test_round_trip(path: Path) -> None:
    content = load_for_run(path, {"steps": 3, "seed": 0})
    assert torch.equal(content["weight"], torch.arange(1000))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_damaged(path: Path, damage: str) -> None:
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    else:
        del data[-10:]
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"vision\.checkpoint is damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip file of somebody else"])
def test_foreign(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"vision\.checkpoint is not a checkpoint of this program"):
        load_checkpoint(path)


def test_other_run(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"another run \(seed 0 instead of 1\)"):
        load_for_run(path, {"steps": 3, "seed": 1})


def test_command_line_says_it_in_one_line(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_bytes(b"nonsense")
    with pytest.raises(SystemExit) as stopped:
        main(["--stage", "vision", "--out", str(path.parent)])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.strip().splitlines() == [
        f"{path} is not a checkpoint of this program; delete it or give another --out"
    ]


def test_joint_needs_the_other_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--stage", "joint", "--out", str(tmp_path)])
    assert "train with --stage vision first" in capsys.readouterr().err
