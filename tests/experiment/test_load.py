"""Loading: prompts, padding, lengths of answers, and what cannot be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tokcomp.cli.main import main
from tokcomp.embedded.dataset import prompt
from tokcomp.errors import ConfigurationError
from tokcomp.experiment.config import ModelConfig, RunConfig
from tokcomp.experiment.load import LoadedModel, load_model, load_shape
from tokcomp.experiment.result import Result
from tokcomp.experiment.run import run_recorded

RED = Image.new("RGB", (96, 96), (200, 20, 20))


@pytest.fixture(scope="module")
def loaded(untrained: Path) -> LoadedModel:
    return load_model(ModelConfig(path=str(untrained)), device="cpu", dtype=torch.float32)


def test_the_chat_template_gives_the_prompt_of_training(loaded: LoadedModel) -> None:
    question = "what digit is red ?"
    tokens = loaded.processor.tokenizer
    assert tokens(loaded.prompt(question))["input_ids"] == tokens(prompt(question))["input_ids"]


def test_a_template_of_the_users(untrained: Path) -> None:
    config = ModelConfig(path=str(untrained), prompt="USER: <image> {question} ASSISTANT:")
    loaded = load_model(config, device="cpu", dtype=torch.float32)
    assert loaded.prompt("a {b} ?") == "USER: <image> a {b} ? ASSISTANT:"


def test_a_device_that_is_not_here_is_refused_where_a_model_is_loaded(
    untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = RunConfig.resolve({"model": {"path": str(untrained)}, "device": "cuda:99"})
    with pytest.raises(ConfigurationError, match="device=cuda:99 cannot be used here"):
        run_recorded(config, tmp_path)
    assert Result.read(tmp_path / "result.json").status == "failed"
    assert main(["run", f"model.path={untrained}", "device=cuda:99", f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_random_weights_are_the_same_in_every_run() -> None:
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = load_model(ModelConfig(weights="random"), device="cpu", dtype=torch.float32).model
        made.append([torch.rand(1), *model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(made[0][1:], made[1][1:], strict=True))
    assert not torch.equal(made[0][0], made[1][0]), "the caller's own numbers go on"


def test_batches_are_padded_on_the_left(loaded: LoadedModel) -> None:
    inputs = loaded.inputs(["how many digits ?", "what digit is red ? what digit is red ?"], [[RED], [RED]])
    assert inputs["attention_mask"][0, 0] == 0
    assert inputs["attention_mask"][:, -1].tolist() == [1, 1]
    assert inputs["pixel_values"].shape == (2, 3, 96, 96)


def test_an_image_of_any_mode_is_taken(loaded: LoadedModel) -> None:
    grey = Image.new("LA", (40, 70), (9, 200))
    assert loaded.inputs(["how many digits ?"], [[grey]])["pixel_values"].shape == (1, 3, 96, 96)


def test_an_answer_ends_with_its_first_end_token(loaded: LoadedModel) -> None:
    end = loaded.model.generation_config.eos_token_id
    ids = torch.tensor([[5, end, end, end], [5, 6, 7, 8], [end, 5, end, 5], [5, 6, 7, end]])
    assert loaded.lengths(ids) == [2, 4, 1, 4]


def test_answers_do_not_depend_on_sampling_settings_of_the_checkpoint(loaded: LoadedModel) -> None:
    inputs = loaded.inputs(["how many digits ?"], [[RED]])
    first = loaded.generate(inputs, 3)
    torch.manual_seed(1)
    assert torch.equal(first, loaded.generate(inputs, 3))
    assert first.shape == (1, 3)


WRONG = {
    "/nowhere/at/all": "model.path=/nowhere/at/all is no folder",
    "./neither": r"model.path=\./neither is no folder",
}


@pytest.mark.parametrize(("path", "message"), WRONG.items())
def test_a_folder_that_is_not_there(path: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_model(ModelConfig(path=path), device="cpu", dtype=torch.float32)


def test_an_empty_folder_and_a_damaged_one(tmp_path: Path, untrained: Path) -> None:
    with pytest.raises(ConfigurationError, match="model 'tiny' could not be loaded from"):
        load_model(ModelConfig(path=str(tmp_path)), device="cpu", dtype=torch.float32)
    for file in untrained.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 1000 if file.suffix == ".safetensors" else None])
    with pytest.raises(ConfigurationError, match="model 'tiny' could not be loaded from") as caught:
        load_model(ModelConfig(path=str(tmp_path)), device="cpu", dtype=torch.float32)
    assert "\n" not in str(caught.value)


def test_a_processor_without_a_template_asks_for_one(tmp_path: Path, untrained: Path) -> None:
    for file in untrained.iterdir():
        if file.suffix != ".jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ConfigurationError, match=r"has no chat template: give model\.prompt"):
        load_model(ModelConfig(path=str(tmp_path)), device="cpu", dtype=torch.float32)


def test_sizes_come_from_the_folder_or_from_a_name(untrained: Path) -> None:
    local = ModelConfig(name="llava-1.5-7b", path=str(untrained), shape="llava-1.5-7b")
    assert load_shape(local).hidden == 128, "a folder that is there says more than the name"
    assert load_shape(local.model_copy(update={"path": "llava-hf/llava-1.5-7b-hf"})).hidden == 4096
    with pytest.raises(ConfigurationError, match=r"no model shape is called 'llava-1\.5-8b'"):
        load_shape(ModelConfig(shape="llava-1.5-8b"))
