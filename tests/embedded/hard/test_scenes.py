"""Hard scenes are reproducible, well formed, and share nothing across splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tokcomp.embedded import sources
from tokcomp.embedded.glyphs import glyph_pool
from tokcomp.embedded.hard.dataset import hard_question_set
from tokcomp.embedded.hard.scenes import CELLS, COUNTS, Plans, draw_plans, paint
from tokcomp.embedded.photos import PHOTOS


def plans(seed: int = 0, number: int = 64, split: str = "test") -> Plans:
    return draw_plans(np.random.default_rng(seed), split, number)  # type: ignore[arg-type]


def test_same_seed_gives_same_scenes_and_pixels() -> None:
    first, second = plans(3, 4), plans(3, 4)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(paint(first.tensors(), "test")[0], paint(second.tensors(), "test")[0])
    assert not np.array_equal(first.digit, plans(4, 4).digit)


@pytest.mark.parametrize("split", ["train", "test"])
def test_scenes_are_well_formed(split: str) -> None:
    drawn = plans(1, 300, split)
    taken = drawn.digit >= 0
    assert set(taken.sum(1)) == set(COUNTS)
    assert np.array_equal(taken, drawn.colour >= 0)
    assert np.array_equal(taken, drawn.glyph >= 0)
    pool = glyph_pool(split)  # type: ignore[arg-type]
    assert all(g in pool[d] for g, d in zip(drawn.glyph[taken], drawn.digit[taken], strict=True))
    assert (drawn.warp == [0, 0, 1, 1]).all() == (split == "test")


def test_repeats_are_common() -> None:
    """Distractors: another glyph of the same digit, or of the same colour."""
    drawn = plans(2, 200)
    for values in (drawn.digit, drawn.colour):
        repeated = [len(set(row[row >= 0])) < (row >= 0).sum() for row in values]
        assert 0.3 < np.mean(repeated) < 0.95


def test_patches_belong_to_the_cell_that_they_lie_in() -> None:
    drawn = plans(5)
    pixels, owner = paint(drawn.tensors(), "test")
    assert pixels.shape == (64, 96, 96, 3)
    grid = owner.reshape(64, 3, 4, 3, 4).transpose(2, 3).reshape(64, CELLS, 16)
    cell = torch.arange(CELLS)[:, None]
    assert ((grid == -1) | (grid == cell)).all()
    assert torch.equal((grid >= 0).any(2), torch.from_numpy(drawn.digit >= 0))


def test_a_painted_patch_has_the_glyphs_colour_and_others_do_not_change() -> None:
    drawn = plans(6, 8)
    empty = drawn._replace(glyph=np.full_like(drawn.glyph, -1))
    with_glyphs, owner = paint(drawn.tensors(), "test")
    without, nobody = paint(empty.tensors(), "test")
    changed = (with_glyphs != without).any(-1).reshape(8, 12, 8, 12, 8).any(4).any(2).reshape(8, 144)
    assert (nobody == -1).all()
    assert (changed | (owner < 0)).all()
    assert changed.float().mean() < 0.6


def test_a_longer_set_begins_with_every_shorter_one() -> None:
    few, more = hard_question_set(3, seed=2), hard_question_set(14, seed=2)
    assert [item.id for item in few] == [item.id for item in more[:3]]
    assert all(np.array_equal(np.asarray(a.image), np.asarray(b.image)) for a, b in zip(few, more, strict=False))
    assert len({item.kind for item in more}) == 12
    with pytest.raises(ValueError, match="kinds must name some of neighbour_digit"):
        hard_question_set(1, kinds=["colour"])
    with pytest.raises(ValueError, match="at least 0"):
        hard_question_set(-1)


def test_exported_sources_are_the_bundled_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources.export(tmp_path / "sources.npz")
    bundled = sources.digits(), sources.photo_file(PHOTOS[0].package, PHOTOS[0].file)
    monkeypatch.setenv(sources.VARIABLE, str(tmp_path / "sources.npz"))
    sources._exported.cache_clear()
    try:
        assert all(np.array_equal(a, b) for a, b in zip(sources.digits(), bundled[0], strict=True))
        assert sources.photo_file(PHOTOS[0].package, PHOTOS[0].file) == bundled[1]
    finally:
        monkeypatch.undo()
        sources._exported.cache_clear()
