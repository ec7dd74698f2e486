"""The processor saves, loads and agrees with what training used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaProcessor

from tokcomp.embedded.dataset import prompt
from tokcomp.embedded.processor import build_processor
from tokcomp.embedded.scenes import PATCHES, draw_scene, render
from tokcomp.embedded.training.vision import to_pixels
from tokcomp.embedded.vocabulary import BOS, IMAGE, WORD_IDS, WORDS, encode


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> LlavaProcessor:
    directory: Path = tmp_path_factory.mktemp("processor")
    build_processor().save_pretrained(directory)
    return AutoProcessor.from_pretrained(directory)


def test_text_and_pixels_match_training(processor: LlavaProcessor) -> None:
    pixels = render(draw_scene(np.random.default_rng(0), "test"))
    batch = processor(images=[Image.fromarray(pixels)], text=[prompt("how many digits ?")], return_tensors="pt")
    image = [WORD_IDS[IMAGE]] * PATCHES
    question = encode("how many digits ? assistant :")
    assert batch["input_ids"][0].tolist() == [WORD_IDS[BOS], *encode("user :"), *image, *question]
    assert torch.allclose(batch["pixel_values"], to_pixels([pixels]), atol=1e-5)


def test_prompts_are_padded_on_the_left(processor: LlavaProcessor) -> None:
    image = Image.new("RGB", (96, 96))
    texts = [prompt("how many digits ?"), prompt("list the digits from left to right")]
    batch = processor(images=[image] * 2, text=texts, return_tensors="pt", padding=True)
    assert batch["attention_mask"][0, 0] == 0
    assert batch["attention_mask"][:, -1].all()


def test_chat_template_gives_the_prompt(processor: LlavaProcessor) -> None:
    content = [{"type": "image"}, {"type": "text", "text": "how many digits ?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert text == prompt("how many digits ?")


def test_words_are_unique() -> None:
    assert len(set(WORDS)) == len(WORDS)
