"""A model with its processor, ready to answer questions in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tokcomp.errors import ConfigurationError
from tokcomp.experiment.config import ModelConfig
from tokcomp.measure.shape import ModelShape

__all__ = ["LoadedModel", "load_model", "load_shape", "model_path"]


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


def _loading(config: ModelConfig, load: Callable[[], Any]) -> Any:
    from safetensors import SafetensorError

    try:
        return load()
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise ConfigurationError(
            f"model '{config.name}' could not be loaded from {model_path(config)}: {reason}"
        ) from error


def _given(config: ModelConfig) -> dict[str, Any]:
    if config.path is None:
        return {"local_files_only": True}
    return {} if config.revision is None else {"revision": config.revision}


def load_model(config: ModelConfig, *, device: str, dtype: torch.dtype) -> LoadedModel:
    """Load the model and its processor.

    Raises:
        ConfigurationError: there is no such checkpoint, it cannot be read, or it has no chat template and no
            ``model.prompt`` was given.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    path, given = model_path(config), _given(config)

    def load() -> tuple[Any, Any]:
        model = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype, attn_implementation=config.attention, **given
        )
        return model, AutoProcessor.from_pretrained(path, **given)

    model, processor = _loading(config, load)
    if config.prompt is None and getattr(processor, "chat_template", None) is None:
        raise ConfigurationError(
            f"the processor of model '{config.name}' has no chat template: give model.prompt, such as "
            '"USER: <image>\\n{question} ASSISTANT:"'
        )
    return LoadedModel(model.to(device).eval(), processor, torch.device(device), dtype, config.prompt)


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
    from transformers import AutoConfig

    path = model_path(config)
    return ModelShape.from_config(_loading(config, lambda: AutoConfig.from_pretrained(path, **_given(config))))
