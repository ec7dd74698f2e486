"""`tokcomp view`: any image of the user's, and what is refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tokcomp.cli.main import main
from tokcomp.cli.view import MAX_PIXELS, open_image
from tokcomp.errors import ConfigurationError


def bomb(path: Path, width: int, height: int) -> Path:
    """A PNG of a few bytes that says it has ``width`` x ``height`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize(("mode", "suffix"), [("L", "png"), ("LA", "png"), ("RGBA", "png"), ("P", "gif"), ("CMYK", "jpg"),
                                              ("1", "bmp"), ("I;16", "png"), ("RGB", "webp")])  # fmt: skip
def test_images_of_any_mode_are_taken(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.new(mode, (31, 17)).save(path)
    opened = open_image(path)
    assert (opened.mode, opened.size) == ("RGB", (31, 17))


def test_a_photo_stands_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "photo.jpg", exif=exif)
    assert open_image(tmp_path / "photo.jpg").size == (20, 40)


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (MAX_PIXELS // 1000 + 1, 1000)])
def test_an_absurdly_large_image_is_refused_before_it_is_decoded(tmp_path: Path, width: int, height: int) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ConfigurationError, match=f"has {width} x {height} pixels: at most 50 million are taken"):
        open_image(bomb(tmp_path / "bomb.png", width, height))
    assert limit == Image.MAX_IMAGE_PIXELS, "the caller's own limit is left alone"


def damaged(folder: Path) -> dict[str, Path]:
    whole = folder / "whole.jpg"
    Image.effect_noise((200, 200), 90).save(whole)
    files = {
        "missing": folder / "missing.jpg",
        "name too long": folder / ("a" * 300),
        "folder": folder,
        "text": folder / "text.jpg",
        "empty": folder / "empty.jpg",
        "cut": folder / "cut.jpg",
        "hollow": bomb(folder / "hollow.png", 8, 8),
    }
    files["text"].write_text("no image")
    files["empty"].write_bytes(b"")
    files["cut"].write_bytes(whole.read_bytes()[:3000])
    return files


@pytest.mark.parametrize("case", ["missing", "name too long", "folder", "text", "empty", "cut", "hollow"])
def test_what_is_no_image_is_one_line_and_status_2(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = damaged(tmp_path)[case]
    assert main(["view", str(path), "what ?"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"tokcomp: {path} ")
    assert error.count("\n") == 1


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (96, 96), (90, 120, 30)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "the question is empty"),
        (["what ?", "--out", "nowhere/at/all.png"], "nowhere/at/all.png cannot be written"),
        (["what ?", "--out", "x.jpg"], "--out x.jpg: the picture is a PNG, expected a name such as x.png"),
        (["what ?", "--out", "/"], "/ cannot be written: it is a folder"),
        (["what ?", "--out", "/proc/mine.png"], "/proc/mine.png cannot be written: "),
        (["what ?", "vision=tomee"], "unknown vision strategy 'tomee'"),
        (["what ?", "model.path=/nowhere"], "model.path=/nowhere is no folder"),
    ],
)
def test_other_mistakes(photo: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", str(photo), *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"tokcomp: {message}")


def test_the_picture_is_asked_for_as_the_line_says(
    photo: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def render(image: Image.Image, question: str, pipeline_spec: Any, model: Any, out: Path) -> dict[str, Any]:
        asked.update(image=image, question=question, spec=pipeline_spec, model=model, out=out)
        return {"dense": "yes", "compressed": "no"}

    monkeypatch.setattr("tokcomp.report.view.render", render)
    monkeypatch.chdir(tmp_path)
    assert main(["view", str(photo), "how many ?", f"model.path={untrained}", "prefill=fastv"]) == 0
    assert asked["image"].size == (96, 96)
    assert asked["question"] == "how many ?"
    assert asked["spec"]["prefill"]["name"] == "fastv"
    assert (asked["spec"]["vision"], asked["spec"]["cache"]) == (None, None)
    assert asked["out"] == Path("photo-tokens.png")
    assert capsys.readouterr().out == "dense: yes\ncompressed: no\nwritten to photo-tokens.png\n"


def test_a_budget_is_met_before_the_picture_is_drawn(
    photo: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratios: list[float] = []

    def render(image: Any, question: str, spec: Any, model: Any, out: Path) -> dict[str, Any]:
        ratios.append(spec["vision"]["keep_ratio"])
        return {}

    monkeypatch.setattr("tokcomp.report.view.render", render)
    line = ["vision=random", "vision.keep_ratio=0.9", "budget.equivalent_tokens=36", "budget.samples=2"]
    assert main(["view", str(photo), "how many ?", f"model.path={untrained}", *line, "--out", str(tmp_path / "x")]) == 0
    assert ratios == [pytest.approx(0.25, rel=0.04)]


def test_without_a_strategy_it_shows_mustdrop(
    photo: Path, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[Any] = []

    def render(image: Any, question: str, spec: Any, model: Any, out: Path) -> dict[str, Any]:
        names.extend(spec[stage] and spec[stage]["name"] for stage in ("vision", "prefill", "cache"))
        return {}

    monkeypatch.setattr("tokcomp.report.view.render", render)
    monkeypatch.chdir(tmp_path)
    assert main(["view", str(photo), "how many ?", f"model.path={untrained}", "--out", "out.png"]) == 0
    assert names == ["mustdrop"] * 3
