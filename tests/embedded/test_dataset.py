"""The benchmark is a fixed endless list, balanced over the kinds."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from tokcomp.embedded.dataset import prompt, question_set
from tokcomp.embedded.questions import KINDS


def test_longer_sets_begin_with_shorter_ones() -> None:
    short, long = question_set(12), question_set(25)
    for a, b in zip(short, long, strict=False):
        assert (a.id, a.question, a.answer, a.kind) == (b.id, b.question, b.answer, b.kind)
        assert np.array_equal(np.asarray(a.image), np.asarray(b.image))


def test_kinds_take_turns() -> None:
    counts = Counter(item.kind for item in question_set(len(KINDS) * 2))
    assert counts == dict.fromkeys(KINDS, 2)
    assert {item.kind for item in question_set(6, kinds=["count", "photo"])} == {"count", "photo"}


def test_splits_and_seeds_differ_and_ids_are_unique() -> None:
    sets = [question_set(10), question_set(10, seed=1), question_set(10, split="train")]
    assert len({item.id for items in sets for item in items}) == 30
    assert len({np.asarray(item.image).tobytes() for items in sets for item in items}) == 30


def test_every_question_has_its_own_scene() -> None:
    assert len({np.asarray(item.image).tobytes() for item in question_set(60)}) == 60


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="n must be at least 0, got -1"):
        question_set(-1)
    with pytest.raises(ValueError, match=r"kinds must name some of .*describe.*got \['weather'\]"):
        question_set(1, kinds=["weather"])


def test_prompt_holds_one_image() -> None:
    assert prompt("how many digits ?") == "USER: <image> how many digits ? ASSISTANT:"


def test_importing_the_package_imports_no_heavy_library() -> None:
    code = (
        "import sys, tokcomp; before = set(sys.modules); import tokcomp.embedded;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "sys.exit(', '.join(new & {'transformers', 'sklearn', 'skimage', 'torch'}) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
