"""Training resumes exactly, its shortcuts agree with the whole model, and sealed layers stay sealed."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from tokcomp.embedded.hard import language_stage, recipe, vision_stage
from tokcomp.embedded.hard import vocabulary as v
from tokcomp.embedded.hard.architecture import BLIND_LAYERS, DIGITS_FROM, build_model, readers, unreadable
from tokcomp.embedded.hard.codes import FIRST_CODE, SPANS, WIDTH, meanings, word_embeddings
from tokcomp.embedded.hard.forward import Forward
from tokcomp.embedded.hard.language_stage import LanguageBatch, LanguageStage, gaze_loss, glyphs_first, kind_shares
from tokcomp.embedded.hard.packing import assemble, draw_questions, encode, facts_of, pack
from tokcomp.embedded.hard.recipe import Machine
from tokcomp.embedded.hard.scenes import draw_plans, paint
from tokcomp.embedded.hard.vision_stage import Scenes, Tower, normalised
from tokcomp.embedded.train import main
from tokcomp.embedded.training.loop import Schedule, Training

SCHEDULES = {name: Schedule(steps=2, batch=2, rate=1e-3, warmup=2, decay=0.01) for name in recipe.STAGES}
MACHINE = Machine(torch.device("cpu"), torch.float32)


@pytest.fixture(autouse=True)
def _small_exams(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (vision_stage, language_stage):
        monkeypatch.setattr(module, "EXAM_SCENES", 2)


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    return build_model(0).eval()


def train(directory: Path, name: str, stop_at: int | None = None) -> dict[str, torch.Tensor]:
    stage = recipe.build_stage(name, directory, SCHEDULES, MACHINE)
    Training(stage, directory, every=1, exam_every=2).run(stop_at)
    return {key: value.clone() for key, value in stage.trained().state_dict().items()}


@pytest.mark.slow
def test_interrupted_training_equals_undisturbed_and_keeps_layers_sealed(tmp_path: Path) -> None:
    for name in recipe.STAGES:
        whole = train(tmp_path / "whole", name)
        train(tmp_path / "halves", name, stop_at=1)
        halves = train(tmp_path / "halves", name)
        assert all(torch.equal(whole[key], halves[key]) for key in whole), name
    log = [json.loads(line) for line in (tmp_path / "halves" / "language.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2]
    key = "language.layers.{}.self_attn.v_proj.weight"
    assert not whole[key.format(0)][:, FIRST_CODE:].any()
    assert not whole[key.format(DIGITS_FROM - 1)][:, SPANS["digit"]].any()
    assert whole[key.format(DIGITS_FROM)][:, SPANS["digit"]].any()
    assert not whole["projector.linear_2.weight"][:FIRST_CODE].any()
    assert not whole["projector.linear_2.bias"][:FIRST_CODE].any()


def test_a_log_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    """A run that was killed between two checkpoints does some steps again, and logs them once."""
    stage = recipe.build_stage("vision", tmp_path, SCHEDULES, MACHINE)
    Training(stage, tmp_path, every=1, save_every=2).run(stop_at=1)
    with (tmp_path / "vision.jsonl").open("a") as log:
        log.write(json.dumps({"stage": "vision", "step": 2}) + "\n")
    train(tmp_path, "vision")
    lines = [json.loads(line) for line in (tmp_path / "vision.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert "loss" in lines[1]


def test_steps_fitted_to_a_time_are_written_down_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "TRIAL_STEPS", 3)
    monkeypatch.setattr(recipe, "TIMED_STEPS", 2)
    first = recipe.planned("vision", tmp_path, SCHEDULES, MACHINE, 5.0, 0)
    assert first.steps >= 3
    assert recipe.planned("vision", tmp_path, SCHEDULES, MACHINE, 500.0, 0) == first
    assert recipe.planned("vision", tmp_path, SCHEDULES, MACHINE, None, 0) == first
    assert recipe.planned("language", tmp_path, SCHEDULES, MACHINE, None, 0) == SCHEDULES["language"]


@pytest.mark.parametrize("damage", [b"nonsense", None])
def test_a_damaged_checkpoint_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes | None
) -> None:
    path = tmp_path / "vision.checkpoint"
    if damage is None:
        train(tmp_path, "vision", stop_at=1)
        damage = path.read_bytes()[:-7] + b"\0" * 7
    path.write_bytes(damage)
    with pytest.raises(SystemExit) as stopped:
        main(["--model", "tiny-hard", "--stage", "vision", "--out", str(tmp_path), "--scale", "0.0005", "--batch", "2"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("vision.checkpoint is") == 1


def test_unfinished_vision_is_no_start(tmp_path: Path) -> None:
    train(tmp_path, "vision", stop_at=1)
    with pytest.raises(ValueError, match="stopped at step 1 of 2; finish --stage vision"):
        recipe.build_stage("language", tmp_path, SCHEDULES, MACHINE)


def test_tower_and_projector_agree_with_the_whole_model(model: LlavaForConditionalGeneration) -> None:
    pixels = torch.randn(2, 3, 96, 96)
    forward = Forward(model, torch.float32)
    with torch.no_grad():
        hidden, final = forward.features(pixels, last=True)
        assert final is not None
        assert torch.allclose(final, model.model.vision_tower(pixels).last_hidden_state, atol=1e-5)
        expected = torch.stack(list(model.model.get_image_features(pixels).pooler_output))
        assert torch.allclose(forward.project(hidden[:, 1:]), expected, atol=1e-5)


def test_packed_answers_agree_with_the_whole_model(model: LlavaForConditionalGeneration) -> None:
    """A question packed among others is answered as it is alone, through the model's own forward."""
    plans = draw_plans(np.random.default_rng(0), "test", 1)
    row = draw_questions(facts_of(plans.digit, plans.colour)[0], random.Random(0), kind_shares(1))[:6]
    schedule = SCHEDULES["language"]
    stage = LanguageStage(model, schedule, Forward(model, torch.float32), Tower(model).state_dict())
    batch = LanguageBatch(
        Scenes(*plans.tensors()), pack([row]), torch.tensor([144]), torch.rand(1, 144), torch.tensor([True])
    )
    losses, weights = [], []
    with torch.no_grad():
        packed, _ = stage.answered(batch, "test")
        pixels = normalised(paint(plans.tensors(), "test")[0])
        for _, question in row:
            asked, answered = encode(question)
            ids = [*v.ids((v.BOS, "user", ":")), *[v.WORD_IDS[v.IMAGE]] * 144, *asked, *answered]
            logits = model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0, -len(answered) - 1 : -1]
            told = torch.nn.functional.cross_entropy(logits, torch.tensor(answered), reduction="sum")
            losses.append(told.item() * len(answered) ** -0.5)
            weights.append(len(answered) ** 0.5)
    assert packed.loss.item() == pytest.approx(sum(losses) / sum(weights), rel=1e-4)
    assert packed.asked.sum() == len(row)


def test_blind_layers_cannot_tell_images_apart(model: LlavaForConditionalGeneration) -> None:
    """Patches that differ in their codes alone come out of the first layers with the same words."""
    language = model.model.language_model
    inputs = torch.zeros(2, 6, WIDTH)
    inputs[..., :FIRST_CODE] = torch.randn(6, FIRST_CODE)
    inputs[0, :3, FIRST_CODE] = inputs[1, :3, FIRST_CODE + 3] = 1.0
    taken = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output: taken.append(output.clone())) for layer in language.layers
    ]
    with torch.no_grad():
        language(inputs_embeds=inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    # The sum of squares in a norm may round differently; nothing else may differ.
    same = [bool((states[0, 3:] - states[1, 3:]).abs().max() < 1e-5) for states in taken]
    assert same[: BLIND_LAYERS + 1] == [True] * BLIND_LAYERS + [False]
    assert all(not linear.weight[:, unreadable(0)].any() for linear in readers(language.layers[0]))


def test_words_are_orthonormal_and_apart_from_the_codes() -> None:
    words = word_embeddings()
    assert torch.allclose(words @ words.T, torch.eye(len(words)), atol=1e-5)
    assert not words[:, FIRST_CODE:].any()
    assert torch.allclose(meanings() @ meanings().T, torch.eye(WIDTH - FIRST_CODE), atol=1e-5)


def test_glyphs_are_kept_first() -> None:
    plans = draw_plans(np.random.default_rng(0), "test", 16)
    owner = paint(plans.tensors(), "test")[1]
    number = torch.tensor([8, 40] * 8)
    alive = glyphs_first(owner, torch.rand(16, 144), number)
    assert torch.equal(alive.sum(1), number)
    for row in range(16):
        kept = owner[row][alive[row]]
        assert set(kept.tolist()) - {-1} == set(np.flatnonzero(plans.digit[row] >= 0).tolist())
        assert (kept >= 0).all() or (owner[row] >= 0).sum() == (kept >= 0).sum()


def test_guided_attention_is_the_models_own(model: LlavaForConditionalGeneration) -> None:
    plans = draw_plans(np.random.default_rng(0), "test", 1)
    row = draw_questions(facts_of(plans.digit, plans.colour)[0], random.Random(0), kind_shares(1))[:2]
    questions = pack([row])
    asked, _ = encode(row[0][1])
    ids = torch.tensor([[*v.ids((v.BOS, "user", ":")), *[v.WORD_IDS[v.IMAGE]] * 144, *asked]])
    pixels = normalised(paint(plans.tensors(), "test")[0])
    eager = LlavaForConditionalGeneration(model.config)
    eager.load_state_dict(model.state_dict())
    eager.set_attn_implementation("eager")
    forward = Forward(model, torch.float32)
    with torch.no_grad():
        expected = eager(input_ids=ids, pixel_values=pixels, output_attentions=True).attentions
        features = forward.project(forward.features(pixels)[0][:, 1:])
        embeddings = model.get_input_embeddings().weight
        fed = assemble(questions, features, torch.ones(1, 144).bool(), torch.tensor([True]), embeddings, torch.float32)
        _, looks = forward.language(fed.embeddings, fed.mask, fed.positions, questions.ends, 6)
    assert len(looks) == 4
    for look, attention in zip(looks, expected[6:], strict=True):
        assert torch.allclose(look[0, 1, : ids.shape[1]], attention[0].mean(0)[-1], atol=1e-5)


def test_gaze_is_best_when_even_on_glyphs() -> None:
    glyph = torch.tensor([[True, True, False, False]])
    rows = torch.tensor([[True, False]])
    even, uneven, off = (torch.tensor([[a, [1.0, 1, 1, 1]]]) for a in ([4.0, 4, 0, 0], [7.0, 1, 0, 0], [1.0, 1, 1, 1]))
    assert gaze_loss(even, glyph, rows).item() == pytest.approx(np.log(2))
    assert gaze_loss(uneven, glyph, rows) > gaze_loss(even, glyph, rows)
    assert gaze_loss(off, glyph, rows).item() == pytest.approx(np.log(4))
