"""A model with its processor, ready to answer questions in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tokcomp.errors import ConfigurationError
from tokcomp.experiment.checkpoint import loading, refuse_other_formats, refuse_too_large
from tokcomp.experiment.config import ModelConfig
from tokcomp.experiment.environment import refuse_unusable
from tokcomp.measure.shape import ModelShape
from tokcomp.models.adapter import use_adapter

__all__ = ["LoadedModel", "full_config", "load_model", "load_shape", "model_path", "random_model", "trained_model"]


@dataclass(frozen=True)
class LoadedModel:
    """A model and what stands around it.

    Attributes:
        model: in eval mode, on ``device``.
        processor: turns images and text into the model's inputs.
        device, dtype: where and in what the inputs are made.
        template: prompt with ``{question}``; None: the processor's chat template.
    """

    model: Any
    processor: Any
    device: torch.device
    dtype: torch.dtype
    template: str | None = None

    @property
    def shape(self) -> ModelShape:
        return ModelShape.from_config(self.model.config)

    def prompt(self, question: str, images: int = 1) -> str:
        """The text that goes to the processor."""
        if self.template is not None:
            return self.template.replace("{question}", question)
        content = [*({"type": "image"},) * images, {"type": "text", "text": question}]
        text: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return text

    def inputs(self, questions: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> dict[str, Any]:
        """Model inputs of one batch, padded on the left."""
        texts = [self.prompt(question, len(group)) for question, group in zip(questions, images, strict=True)]
        pictures = [picture.convert("RGB") for group in images for picture in group]
        batch = self.processor(images=pictures, text=texts, padding=True, padding_side="left", return_tensors="pt")
        return {
            name: value.to(self.device, self.dtype) if value.is_floating_point() else value.to(self.device)
            for name, value in batch.items()
        }

    @torch.inference_mode()
    def generate(
        self, inputs: dict[str, Any], max_new_tokens: int, watch: Callable[..., Any] | None = None
    ) -> torch.Tensor:
        """Greedy answers: token ids ``[b, t]`` after the prompt; ``watch`` is called with the logits of every step."""
        tokenizer = self.processor.tokenizer
        output: torch.Tensor = self.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            logits_processor=[] if watch is None else [watch],
        )
        return output[:, inputs["input_ids"].shape[1] :]

    def texts(self, ids: torch.Tensor) -> list[str]:
        """Answers as text."""
        return [text.strip() for text in self.processor.batch_decode(ids, skip_special_tokens=True)]

    def lengths(self, ids: torch.Tensor) -> list[int]:
        """Tokens of each answer up to its first end token, that one included."""
        ends = self.model.generation_config.eos_token_id
        ends = torch.tensor([] if ends is None else [ends] if isinstance(ends, int) else list(ends), device=ids.device)
        ended = torch.isin(ids, ends)
        first = ended.long().argmax(dim=1) + 1
        return torch.where(ended.any(dim=1), first, ids.shape[1]).tolist()


def model_path(config: ModelConfig) -> str:
    """Where the model lies: the id or folder that was given, or the embedded weights.

    Raises:
        ConfigurationError: the folder, or the embedded weights, are not there.
    """
    if config.path is not None:
        folder = Path(config.path).expanduser()
        if config.path.startswith(("/", ".", "~")) and not folder.is_dir():
            raise ConfigurationError(f"model.path={config.path} is no folder")
        return str(folder) if folder.is_dir() else config.path
    from tokcomp.embedded.paths import EMBEDDED, WEIGHTS

    weights = EMBEDDED.get(config.name, WEIGHTS)
    if not (weights / "config.json").is_file():
        raise ConfigurationError(
            f"the embedded model's weights are missing in {weights}: train them with "
            f"`python -m tokcomp.embedded.train --model {config.name} --out DIR`, or give model.path"
        )
    return str(weights)


def _given(config: ModelConfig) -> dict[str, Any]:
    trust = {"trust_remote_code": config.trust_remote_code}
    if config.path is None:
        return {"local_files_only": True, **trust}
    return trust if config.revision is None else {"revision": config.revision, **trust}


def load_model(config: ModelConfig, *, device: str, dtype: torch.dtype) -> LoadedModel:
    """Load the model and its processor, safetensors only.

    Raises:
        ConfigurationError: the device cannot be used here, there is no such checkpoint, it cannot be reached or read, it does
            not fit into memory, or it has no chat template and no ``model.prompt`` was given.
    """
    from transformers import AutoProcessor

    refuse_unusable(device)
    path, given = model_path(config), _given(config)
    processor = loading(config, path, lambda: AutoProcessor.from_pretrained(path, **given))
    if config.prompt is None and getattr(processor, "chat_template", None) is None:
        raise ConfigurationError(
            f"the processor of model '{config.name}' has no chat template: give model.prompt, such as "
            '"USER: <image>\\n{question} ASSISTANT:"'
        )
    model = (
        random_model(config, device=device, dtype=dtype)
        if config.weights == "random"
        else trained_model(config, device, dtype)
    )
    if config.adapter is not None:
        use_adapter(model, config.adapter)
    return LoadedModel(model, processor, model.device, dtype, config.prompt)


def trained_model(config: ModelConfig, device: str, dtype: torch.dtype) -> Any:
    """The model with its weights, without a processor; see :func:`load_model`."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    path, given = model_path(config), _given(config)
    refuse_other_formats(config, path)

    def load() -> Any:
        refuse_too_large(config, AutoConfig.from_pretrained(path, **given), device=device, dtype=dtype)
        model = AutoModelForImageTextToText.from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=config.attention,
            use_safetensors=True,
            device_map=config.device_map,
            **given,
        )
        return model.eval() if config.device_map is not None else model.to(device).eval()

    return loading(config, path, load)


def random_model(config: ModelConfig, *, device: str, dtype: torch.dtype) -> Any:
    """The model with random weights, always the same, for cost studies; on the device ``meta`` it takes no memory at all.

    Raises:
        ConfigurationError: its sizes are neither shipped nor in the checkpoint's ``config.json``, or it does not fit.
    """
    from transformers import AutoModelForImageTextToText

    sizes = full_config(config)

    def make() -> Any:
        refuse_too_large(config, sizes, device=device, dtype=dtype)
        # The same weights in every process: a run is compared with answers that another one may have made.
        forked = range(torch.cuda.device_count()) if device.startswith("cuda") else ()
        with torch.random.fork_rng(devices=forked), torch.device(device):
            torch.manual_seed(0)
            return AutoModelForImageTextToText.from_config(sizes, dtype=dtype, attn_implementation=config.attention)

    return loading(config, str(config.shape or config.path), make).eval()


def full_config(config: ModelConfig) -> Any:
    """The transformers configuration of a model: the checkpoint's own, or one of the shipped sizes."""
    from transformers import AutoConfig

    from tokcomp.measure.shape import named_config

    if config.shape is not None and not (config.path is not None and Path(config.path).is_dir()):
        fields = named_config(config.shape)
        return AutoConfig.for_model(**{name: value for name, value in fields.items() if name != "source"})
    path = model_path(config)
    return loading(config, path, lambda: AutoConfig.from_pretrained(path, **_given(config)))


def load_shape(config: ModelConfig) -> ModelShape:
    """The model's sizes, without its weights: a shipped shape, or the checkpoint's ``config.json``.

    Raises:
        ConfigurationError: there is no such shape or checkpoint.
        UnsupportedError: a family whose FLOPs cannot be counted.
    """
    from tokcomp.measure.shape import named_shape

    # A local folder says more than the name of the model that it replaces.
    if config.shape is not None and not (config.path is not None and Path(config.path).is_dir()):
        return named_shape(config.shape)
    return ModelShape.from_config(full_config(config))
