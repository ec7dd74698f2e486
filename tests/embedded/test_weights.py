"""The shipped weights load by plain transformers and answer well."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tokcomp.embedded import WEIGHTS, load_model, load_processor, question_set
from tokcomp.embedded.card import write_card
from tokcomp.embedded.evaluate import answers, background_patches, right_when_keeping
from tokcomp.embedded.questions import BACKGROUND_KINDS, KINDS


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    return load_model()


def test_plain_transformers_loads_and_answers() -> None:
    model = LlavaForConditionalGeneration.from_pretrained(WEIGHTS, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(WEIGHTS)
    items = question_set(60)
    said = answers(model, processor, items)
    right = [text == item.answer for text, item in zip(said, items, strict=True)]
    assert sum(right) / len(right) >= 0.9


def test_teacher_forcing_agrees_with_generation(model: LlavaForConditionalGeneration) -> None:
    items = question_set(30, seed=1)
    said = answers(model, load_processor(), items)
    forced = right_when_keeping(model, items, np.tile(np.arange(144), (len(items), 1)))
    assert forced == [text == item.answer for text, item in zip(said, items, strict=True)]


def test_background_alone_does_not_answer(model: LlavaForConditionalGeneration) -> None:
    items = question_set(90, kinds=[kind for kind in KINDS if kind not in BACKGROUND_KINDS])
    right = right_when_keeping(model, items, background_patches(items, np.random.default_rng(0)))
    assert sum(right) / len(right) < 0.6


def test_loaded_model_is_ready(model: LlavaForConditionalGeneration) -> None:
    assert not model.training
    assert model.dtype == torch.float32
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_size_and_scores() -> None:
    assert sum(file.stat().st_size for file in WEIGHTS.iterdir()) < 12e6
    scores = json.loads((WEIGHTS / "scores.json").read_text())
    assert set(scores["kinds"]) == set(KINDS)
    assert scores["without_photo"] >= 0.95
    assert min(entry["accuracy"] for entry in scores["kinds"].values()) >= 0.8


def test_card_is_generated(tmp_path: Path) -> None:
    copy = tmp_path / "weights"
    shutil.copytree(WEIGHTS, copy)
    write_card(copy)
    assert (copy / "MODEL_CARD.md").read_text() == (WEIGHTS / "MODEL_CARD.md").read_text()
