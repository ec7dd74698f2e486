"""Published checkpoints: their sizes, loading small ones of the same layout from a folder, and one line for what goes wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub import errors as hub
from transformers import AutoProcessor

from tests.measure.tiny_models import llava, qwen
from tests.models.families import families, models
from tokcomp import Pipeline
from tokcomp.errors import ConfigurationError
from tokcomp.experiment import checkpoint
from tokcomp.experiment.compose import compose
from tokcomp.experiment.config import ModelConfig, RunConfig
from tokcomp.experiment.load import load_model, random_model, trained_model
from tokcomp.experiment.paths import option_names
from tokcomp.experiment.prediction import PredictionConfig, predict
from tokcomp.measure.shape import ModelShape, named_config, named_shape

PUBLISHED = [name for name in option_names("model") if not name.startswith("tiny") and name != "checkpoint"]

# Parameters in billions, as the checkpoints' pages on the Hub state them.
PARAMETERS = {
    "aya-vision-8b": 8.63, "gemma3-4b": 4.30, "glm4v-9b": 10.29, "idefics3-8b": 8.46, "internvl3-8b": 7.94,
    "llava-1.5-7b": 7.06, "llava-1.5-13b": 13.35, "llava-next-7b": 7.06, "llava-next-video-7b": 7.06,
    "llava-onevision-7b": 8.03, "mistral-small-3.1-24b": 24.0, "paligemma2-3b": 3.03, "qwen2-vl-7b": 8.29,
    "qwen2.5-vl-7b": 8.29, "qwen3-vl-8b": 8.77, "smolvlm-2b": 2.25,
}  # fmt: skip


def option(name: str) -> ModelConfig:
    return RunConfig.resolve(compose([f"model={name}"])).model


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_cost_of_each_published_model_can_be_counted(name: str) -> None:
    config = PredictionConfig.resolve(compose([f"model={name}"], config_name="flops"))
    prediction = predict(config)
    weights = prediction.dense.total / 2 / (config.text_tokens + prediction.dense_tokens.leaving[-1])
    assert 0.3 < weights / 1e9 / PARAMETERS[name] < 3.5, "about a multiply-add per parameter and token"
    assert named_config(config.model.shape or "")["source"] == config.model.path


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_random_weights_have_the_published_sizes(name: str) -> None:
    model = random_model(option(name), device="meta", dtype=torch.float16)
    assert sum(each.numel() for each in model.parameters()) / 1e9 == pytest.approx(PARAMETERS[name], rel=2e-3)
    assert ModelShape.from_config(model.config) == named_shape(option(name).shape or "")


def test_random_weights_of_a_folder(tmp_path: Path) -> None:
    llava().config.save_pretrained(tmp_path)
    config = ModelConfig(name="mine", path=str(tmp_path), weights="random", attention="eager")
    model = random_model(config, device="cpu", dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert not model.training


OTHERS = (
    "qwen3_vl",
    "internvl",
    "smolvlm",
    "gemma3",
    "paligemma",
    "llava_next",
    "llava_onevision",
    "mistral3",
    "glm4v",
)
FAMILIES = {"llava": llava, "llava, siglip": lambda: llava("qwen2", "siglip"), "qwen2_vl": lambda: qwen("qwen2_vl"),
            "qwen2_5_vl": lambda: qwen("qwen2_5_vl")}  # fmt: skip


@pytest.mark.parametrize("device_map", [None, {"": "cpu"}])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_checkpoint_of_each_layout_is_loaded_from_its_folder(
    family: str, device_map: dict[str, str] | None, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate") if device_map else None
    saved = FAMILIES[family]()
    saved.save_pretrained(tmp_path)
    config = ModelConfig(name="mine", path=str(tmp_path), device_map=device_map)
    loaded = trained_model(config, "cpu", torch.float32)
    assert type(loaded) is type(saved)
    assert loaded.config._attn_implementation == "sdpa"
    for (name, one), (other, two) in zip(saved.named_parameters(), loaded.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(one, two)


@pytest.mark.parametrize("family", OTHERS)
def test_a_checkpoint_of_every_layout_is_loaded_from_its_folder_and_compressed(family: str, tmp_path: Path) -> None:
    """As above, for the families with a tower, a projector or a decoder of their own; what was loaded is then compressed."""
    saved, sample = models(family), families()[family].sample(2, 0)
    saved.save_pretrained(tmp_path)
    loaded = trained_model(ModelConfig(name="mine", path=str(tmp_path)), "cpu", torch.float32)
    assert type(loaded) is type(saved)
    for (name, one), (other, two) in zip(saved.named_parameters(), loaded.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(one, two)
    logits, kept = [], []
    for model in (saved, loaded):
        with Pipeline("uniform", {"name": "fastv", "layer": 2}).attach(model) as trace, torch.no_grad():
            logits.append(model(**sample).logits)
        kept.append(trace.last.kept[-1][0])
    assert 0 < len(kept[0]) < trace.last.image_tokens[0]
    assert torch.equal(*kept)
    torch.testing.assert_close(*logits)


def wrapped(error: BaseException) -> Any:
    def raise_it(*args: Any, **kwargs: Any) -> None:
        try:
            raise error
        except Exception as cause:
            raise OSError("a long story\nof several lines") from cause

    return raise_it


class _Response:
    headers: ClassVar[dict[str, str]] = {}
    status_code = 404
    request = None


def _hub(kind: type[Exception]) -> Exception:
    return kind("no", response=_Response()) if issubclass(kind, hub.HfHubHTTPError) else kind("no")  # type: ignore[call-arg]


@pytest.mark.parametrize(("error", "message"), [
    (_hub(hub.GatedRepoError), "google/gemma-3-4b-it is gated: accept its licence"),
    (_hub(hub.RepositoryNotFoundError), "there is no google/gemma-3-4b-it on the Hub, or it is private"),
    (_hub(hub.RevisionNotFoundError), "has no revision 'v9'"),
    (_hub(hub.LocalEntryNotFoundError), "no network to the Hub"),
    (ConnectionError("refused"), "no network to the Hub"),
])  # fmt: skip
def test_one_line_for_each_way_in_which_the_hub_says_no(
    error: BaseException, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoProcessor, "from_pretrained", wrapped(error))
    config = option("gemma3-4b").model_copy(update={"revision": "v9"})
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_model(config, device="cpu", dtype=torch.float32)
    assert "\n" not in str(caught.value)


def test_offline_and_never_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"no network to the Hub.*hf download llava-hf/llava-1\.5-7b-hf"):
        load_model(option("llava-1.5-7b"), device="cpu", dtype=torch.float32)


def test_a_folder_needs_no_network_whatever_it_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "offline"
    folder.mkdir()

    def load() -> None:
        raise OSError(f"{folder} holds no weights")

    with pytest.raises(ConfigurationError, match=r"could not be loaded from .*offline: .*holds no weights"):
        checkpoint.loading(ModelConfig(path=str(folder)), str(folder), load)


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    llava().save_pretrained(tmp_path)
    monkeypatch.setattr(checkpoint, "available_bytes", lambda device: 1000)
    for load in (trained_model, lambda config, device, dtype: random_model(config, device=device, dtype=dtype)):
        with pytest.raises(
            ConfigurationError, match=r"GB of parameters in float32, and cpu has 0\.0 GB free: give a smaller"
        ):
            load(ModelConfig(name="mine", path=str(tmp_path)), "cpu", torch.float32)


def test_free_memory_is_known_here() -> None:
    assert (checkpoint.available_bytes("cpu") or 0) > 2**20
    assert checkpoint.available_bytes("meta") is None


def test_out_of_memory_while_loading_is_one_line() -> None:
    def load() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    with pytest.raises(ConfigurationError, match="does not fit into memory: CUDA out of memory"):
        checkpoint.loading(ModelConfig(name="mine"), "here", load)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    model = llava()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match=r"has pytorch_model\.bin, but no \.safetensors file"):
        trained_model(ModelConfig(name="mine", path=str(tmp_path)), "cpu", torch.float32)


def test_code_of_a_checkpoint_runs_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "code.MyConfig"}}')
    (tmp_path / "code.py").write_text("raise RuntimeError('it ran')")
    with pytest.raises(ConfigurationError, match=r"which is not run unasked.*trust_remote_code=true"):
        trained_model(ModelConfig(name="mine", path=str(tmp_path)), "cpu", torch.float32)
