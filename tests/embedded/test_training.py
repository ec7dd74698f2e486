"""Training resumes exactly, and its shortcuts agree with the whole model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from tokcomp.embedded.architecture import build_model
from tokcomp.embedded.codes import CODED_WORDS, visual_codes, word_embeddings, word_to_code
from tokcomp.embedded.processor import build_processor
from tokcomp.embedded.questions import Question
from tokcomp.embedded.scenes import PATCHES, Scene, draw_scene
from tokcomp.embedded.train import STAGES, build_stage, export, training_record
from tokcomp.embedded.training import joint, language, vision
from tokcomp.embedded.training.dropping import CHANCE, GLYPHS_FIRST, TRAINING_MIX, draw_kept
from tokcomp.embedded.training.joint import answer_batch, joint_batch
from tokcomp.embedded.training.loop import Schedule, Training
from tokcomp.embedded.training.packing import KIND_NAMES, draw_questions, pack
from tokcomp.embedded.training.targets import code_sums, patch_targets
from tokcomp.embedded.training.vision import Tower, to_pixels

SCHEDULES = {name: Schedule(steps=2, batch=2, rate=1e-3, warmup=2, decay=0.01) for name in STAGES}


@pytest.fixture(autouse=True)
def _small_exams(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (vision, language, joint):
        monkeypatch.setattr(module, "_EXAM_SCENES", 2)


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    return build_model(0).eval()


def scenes(number: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [draw_scene(rng, "test") for _ in range(number)]


def train(directory: Path, name: str, stop_at: int | None = None, workers: int = 0) -> dict[str, torch.Tensor]:
    stage = build_stage(name, directory, SCHEDULES)
    Training(stage, directory, every=1, exam_every=2, workers=workers).run(stop_at)
    return {key: value.clone() for key, value in stage.trained().state_dict().items()}


def test_interrupted_training_equals_undisturbed(tmp_path: Path) -> None:
    for name in STAGES:
        whole = train(tmp_path / "whole", name)
        train(tmp_path / "halves", name, stop_at=1)
        halves = train(tmp_path / "halves", name)
        assert all(torch.equal(whole[key], halves[key]) for key in whole), name
    log = [json.loads(line) for line in (tmp_path / "halves" / "joint.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2]
    record = training_record(tmp_path / "halves", SCHEDULES, "command")
    export(build_model(0), tmp_path / "weights", record)
    assert record["stages"]["vision"]["last"]["step"] == 2


def test_workers_change_nothing(tmp_path: Path) -> None:
    alone, helped = train(tmp_path / "a", "vision", 1), train(tmp_path / "b", "vision", 1, workers=1)
    assert all(torch.equal(alone[key], helped[key]) for key in alone)


def test_tower_agrees_with_the_whole_model(model: LlavaForConditionalGeneration) -> None:
    pixels = torch.randn(2, 3, 96, 96)
    tower = Tower(model)
    torch.nn.init.normal_(tower.head.weight)
    with torch.no_grad():
        features, logits = tower(pixels)
        expected = model.model.get_image_features(pixels).pooler_output
        output = model.model.vision_tower(pixels)
        expected_logits = tower.head(output.pooler_output)
    assert torch.allclose(features, torch.stack(list(expected)), atol=1e-5)
    assert torch.allclose(logits, expected_logits, atol=1e-4)


def test_packed_answers_agree_with_the_whole_model(model: LlavaForConditionalGeneration) -> None:
    """A question packed among others is answered as it is alone, through the model's own forward."""
    chosen = scenes(2)
    rng = np.random.default_rng(1)
    rows = [draw_questions(scene, rng, 5) for scene in chosen]
    everything = draw_kept(chosen, rng, PATCHES)
    packed = answer_batch(model, joint_batch(chosen, rows, everything, np.ones(2, bool)))
    tokenizer, losses, weights = build_processor().tokenizer, [], []
    for scene, row in zip(chosen, rows, strict=True):
        for _, question in row:
            text = "user : " + "<image> " * PATCHES + question.text + " assistant : "
            before = tokenizer(text, return_tensors="pt")["input_ids"]
            after = tokenizer(question.answer + " </s>", return_tensors="pt")["input_ids"][:, 1:]
            whole = torch.cat([before, after], 1)
            with torch.no_grad():
                logits = model(input_ids=whole, pixel_values=to_pixels([vision.render(scene)])).logits
            told = torch.nn.functional.cross_entropy(logits[0, before.shape[1] - 1 : -1], after[0], reduction="sum")
            losses.append(told.item() * after.shape[1] ** -0.5)
            weights.append(after.shape[1] ** 0.5)
    assert packed.loss.item() == pytest.approx(sum(losses) / sum(weights), rel=1e-4)


def test_first_layers_look_at_neighbours(model: LlavaForConditionalGeneration) -> None:
    tower = model.model.vision_tower
    with torch.no_grad():
        hidden = tower.pre_layrnorm(tower.embeddings(torch.zeros(1, 3, 96, 96)))
        attention = tower.encoder.layers[0].self_attn
        query, key = (projection(hidden).view(145, 4, 32)[1:] for projection in (attention.q_proj, attention.k_proj))
    centre = 5 * 12 + 5
    peaks = torch.einsum("hd,nhd->hn", query[centre], key).argmax(1) - centre
    assert peaks.tolist() == [1, -1, 12, -12]


def test_words_and_codes_are_orthonormal() -> None:
    rows = torch.cat([word_embeddings(), visual_codes()[CODED_WORDS]])
    assert torch.allclose(rows @ rows.T, torch.eye(len(rows)), atol=1e-5)
    assert torch.allclose(word_embeddings() @ word_to_code().T, visual_codes(), atol=1e-5)


def test_code_sums_name_what_a_patch_shows() -> None:
    (scene,) = scenes(1)
    similar = code_sums(patch_targets([scene]))[0] @ visual_codes().T  # (144, words)
    for patch, owner in enumerate(scene.obj.reshape(-1).tolist()):
        digits = similar[patch, vision.v.ids(vision.v.DIGITS)]
        assert (digits.argmax().item() == scene.objects[owner].digit) if owner >= 0 else digits.abs().max() < 1e-4


@pytest.mark.parametrize("mix", [CHANCE, GLYPHS_FIRST, TRAINING_MIX])
@pytest.mark.parametrize("number", [1, 12, 144])
def test_kept_patches_are_ascending_and_distinct(mix: tuple[float, float], number: int) -> None:
    kept = draw_kept(scenes(4), np.random.default_rng(0), number, mix)
    assert kept.shape == (4, number)
    assert (np.diff(kept, axis=1) > 0).all()


def test_glyphs_first_keeps_one_patch_of_every_glyph() -> None:
    chosen = scenes(20)
    for scene, kept in zip(chosen, draw_kept(chosen, np.random.default_rng(0), 5, GLYPHS_FIRST), strict=True):
        assert set(range(len(scene.objects))) <= set(scene.obj.reshape(-1)[kept].tolist())


def test_padding_is_never_a_question() -> None:
    question = (KIND_NAMES.index("count"), Question("how many digits ?", "two"))
    packed = pack([[question], [question, question]])
    assert packed.segments[0].unique().tolist() == [-1, 1]
    assert (packed.labels[0][packed.segments[0] == -1] == -100).all()
