"""The shipped weights of the hard scenes' model load by plain transformers and answer well."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tokcomp.embedded.evaluate import answers
from tokcomp.embedded.hard.architecture import BLIND_LAYERS, DIGITS_FROM, readers, unreadable
from tokcomp.embedded.hard.card import write_hard_card
from tokcomp.embedded.hard.codes import FIRST_CODE
from tokcomp.embedded.hard.dataset import hard_question_set
from tokcomp.embedded.hard.questions import KINDS
from tokcomp.embedded.paths import HARD_WEIGHTS


@pytest.mark.slow
def test_plain_transformers_loads_and_answers() -> None:
    model = LlavaForConditionalGeneration.from_pretrained(HARD_WEIGHTS, dtype=torch.float32).eval()
    items = hard_question_set(36)
    said = answers(model, AutoProcessor.from_pretrained(HARD_WEIGHTS), items)
    right = [text == item.answer for text, item in zip(said, items, strict=True)]
    assert sum(right) / len(right) >= 0.7


def test_shipped_layers_are_sealed() -> None:
    model = LlavaForConditionalGeneration.from_pretrained(HARD_WEIGHTS, dtype=torch.float32)
    for depth, layer in enumerate(model.model.language_model.layers):
        assert bool(unreadable(depth)) == (depth < DIGITS_FROM)
        assert all(not linear.weight[:, unreadable(depth)].any() for linear in readers(layer))
    assert len(unreadable(BLIND_LAYERS - 1)) > len(unreadable(BLIND_LAYERS))
    assert not model.model.multi_modal_projector.linear_2.weight[:FIRST_CODE].any()


def test_size_and_scores() -> None:
    assert sum(file.stat().st_size for file in HARD_WEIGHTS.iterdir()) < 12e6
    scores = json.loads((HARD_WEIGHTS / "scores.json").read_text())
    assert set(scores["kinds"]) == set(KINDS)
    assert scores["overall"] >= 0.85
    assert min(entry["accuracy"] for entry in scores["kinds"].values()) >= 0.65


def test_card_is_generated(tmp_path: Path) -> None:
    copy = tmp_path / "weights"
    shutil.copytree(HARD_WEIGHTS, copy)
    write_hard_card(copy)
    assert (copy / "MODEL_CARD.md").read_text() == (HARD_WEIGHTS / "MODEL_CARD.md").read_text()
