"""Scenes are reproducible, well formed, and share nothing across splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokcomp.embedded import photos
from tokcomp.embedded.glyphs import glyph_mask, glyph_pool
from tokcomp.embedded.scenes import DENSE, GRID, IMAGE_SIZE, PATCH_SIZE, SCENES, draw_scene, render


def test_same_seed_gives_same_scene_and_pixels() -> None:
    first, second = (draw_scene(np.random.default_rng(5), "test") for _ in range(2))
    assert first.objects == second.objects
    assert first.background == second.background
    assert np.array_equal(render(first), render(second))


def test_splits_share_no_glyph() -> None:
    train = {glyph for pool in glyph_pool("train") for glyph in pool}
    test = {glyph for pool in glyph_pool("test") for glyph in pool}
    assert not train & test
    assert min(map(len, glyph_pool("test"))) >= 20


@pytest.mark.parametrize("split", ["train", "test"])
def test_scenes_use_their_own_glyphs(split: str) -> None:
    rng = np.random.default_rng(1)
    pool = glyph_pool(split)  # type: ignore[arg-type]
    for _ in range(100):
        scene = draw_scene(rng, split)  # type: ignore[arg-type]
        assert all(item.glyph in pool[item.digit] for item in scene.objects)
        assert split == "train" or all(item.warp == -1 for item in scene.objects)


def test_splits_share_no_photo_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    width = 640
    pixels = np.zeros((400, width, 3), np.uint8)
    pixels[:, photos.train_columns(width) :] = 255
    Image.fromarray(pixels).save(tmp_path / "marked.png")
    monkeypatch.setattr(photos, "photo_file", lambda package, file: (tmp_path / "marked.png").read_bytes())
    for size in range(len(photos.SHORT_SIDES)):
        assert not photos.photo_region.__wrapped__(0, size, "train").any()
        assert (photos.photo_region.__wrapped__(0, size, "test") == 255).all()


def test_every_photo_offers_a_full_crop_in_both_splits() -> None:
    for index in range(len(photos.PHOTOS)):
        for size in range(len(photos.SHORT_SIDES)):
            for split in ("train", "test"):
                assert min(photos.photo_region(index, size, split).shape[:2]) >= IMAGE_SIZE  # type: ignore[arg-type]


@pytest.mark.parametrize("rules", [SCENES, DENSE, SCENES.easy()])
def test_scenes_are_well_formed(rules: object) -> None:
    rng = np.random.default_rng(2)
    for _ in range(60):
        scene = draw_scene(rng, "train", rules)  # type: ignore[arg-type]
        assert [item.rank_x for item in scene.objects] == list(range(len(scene.objects)))
        assert sorted(item.rank_y for item in scene.objects) == list(range(len(scene.objects)))
        assert scene.obj.shape == (GRID, GRID)
        assert set(np.unique(scene.obj)) - {-1} == set(range(len(scene.objects)))
        if scene.ranked:
            assert len({item.column for item in scene.objects}) == len(scene.objects)


def test_obj_map_is_where_the_ink_is() -> None:
    scene = draw_scene(np.random.default_rng(3), "test")
    for index, item in enumerate(scene.objects):
        left, top, right, bottom = item.box
        assert glyph_mask(item.glyph, item.size, item.warp).shape == (bottom - top, right - left)
        for row, column in np.argwhere(scene.obj == index):
            assert left < (column + 1) * PATCH_SIZE
            assert column * PATCH_SIZE < right
            assert top < (row + 1) * PATCH_SIZE
            assert row * PATCH_SIZE < bottom


def test_background_is_untouched_outside_the_boxes() -> None:
    scene = draw_scene(np.random.default_rng(4), "test")
    back = scene.background
    crop = photos.photo_region(back.photo, back.size, "test")
    crop = crop[back.top : back.top + IMAGE_SIZE, back.left : back.left + IMAGE_SIZE]
    crop = crop[:, ::-1] if back.flip else crop
    expected = (crop * np.array(back.gain, np.float32)).clip(0, 255).astype(np.uint8)
    outside = np.ones((IMAGE_SIZE, IMAGE_SIZE), bool)
    for left, top, right, bottom in (item.box for item in scene.objects):
        outside[top:bottom, left:right] = False
    assert np.array_equal(render(scene)[outside], expected[outside])
