"""The record that a run leaves: one JSON file, the only truth about it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokcomp.errors import ConfigurationError
from tokcomp.measure.generation import GenerationComparison

__all__ = [
    "SCHEMA_VERSION",
    "Accuracy",
    "CompressedSide",
    "MetBudget",
    "Ratio",
    "Result",
    "SampleRecord",
    "Side",
    "Time",
    "Tokens",
    "UnwritableError",
    "write_atomically",
]

SCHEMA_VERSION: Final = 1


class UnwritableError(ConfigurationError):
    """A file that cannot be written: no run of the same folder could be kept."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Accuracy(_Part):
    """How right the answers are.

    Attributes:
        overall: mean score of the kinds that make the headline.
        interval: its 95 % Wilson interval.
        samples: questions that were answered; ``headline_samples`` of them count in ``overall``.
        by_kind: mean score of each kind of question, those apart from the headline included.
        interval_by_kind, samples_by_kind: likewise.
    """

    overall: float
    interval: tuple[float, float]
    samples: int
    headline_samples: int
    by_kind: dict[str, float]
    interval_by_kind: dict[str, tuple[float, float]]
    samples_by_kind: dict[str, int]


class Tokens(_Part):
    """Tokens per sample, means over the samples.

    Attributes:
        image_tokens: image placeholders of the prompt.
        after_vision: vision tokens that the vision stage left.
        vision_tokens, sequence_tokens: vision tokens, and all tokens, that enter each language-model layer.
        equivalent_tokens: mean of ``vision_tokens`` over the layers.
        cache_lengths: entries of each layer's cache after the prefill.
        new_tokens: tokens of the answer, its end included.
    """

    image_tokens: float
    after_vision: float
    vision_tokens: list[float]
    sequence_tokens: list[float]
    equivalent_tokens: float
    cache_lengths: list[float]
    new_tokens: float


class Ratio(_Part):
    """Time as a share of the dense model's: below 1 is faster."""

    prefill: float
    decode_per_token: float | None
    end_to_end: float


class Time(_Part):
    """Seconds for one batch of ``batch_size`` prompts, medians over the repeats.

    Attributes:
        prefill: from the call of ``generate`` to the first token's logits, image encoding included.
        decode_per_token: one decoding step; None where answers have one token only.
        end_to_end: the whole call.
        ratio: the same as shares of the dense model's, median of the pairs that were timed one after the other.
        batch_size, repeats: what was timed, and how often.
    """

    prefill: float
    decode_per_token: float | None
    end_to_end: float
    ratio: Ratio
    batch_size: int
    repeats: int


class Side(_Part):
    """One side of the comparison.

    Attributes:
        flops: per sample, by part (``tower``, ``projector``, ``prefill``, ``decode``, ``head``, ``selection``, ``total``).
        kv_bytes: bytes of keys and values after the prefill, per sample, all layers; ``kv_bytes_by_layer`` each.
        time: None where it was not measured.
        peak_memory: bytes at the peak of one batch, the model's weights included; None where it was not measured.
    """

    accuracy: Accuracy
    tokens: Tokens
    flops: dict[str, float]
    kv_bytes: float
    kv_bytes_by_layer: list[float]
    time: Time | None = None
    peak_memory: int | None = None


class CompressedSide(Side):
    """The side with the pipeline attached; ``agreement`` is the share of answers equal to the dense ones."""

    agreement: float


class SampleRecord(_Part):
    """One question with both answers and their scores."""

    id: str
    kind: str
    question: str
    expected: str
    dense: str
    compressed: str
    dense_score: float
    compressed_score: float
    equivalent_tokens: float


class MetBudget(_Part):
    """How a run was brought to its budget: the fields that were set in one stage, and the figure that they gave on the
    calibration questions."""

    stage: str
    fields: dict[str, Any]
    figure: float
    target: float


class Result(_Part):
    """One run.

    Attributes:
        status: a ``failed`` run has ``error``, type and message of what went wrong, and no sides; its ``traceback`` is
            there where it was no mistake of the user.
        config, config_hash: the resolved configuration and its hash.
        overrides: what was written on the command line: `tokcomp run` with them makes the run again.
        code_version: digest of the sources that made it, those of plug-ins included.
        environment: what the run ran on.
        started, seconds: when it began (UTC) and how long it took.
        dense, compressed: the two sides.
        budget: how the pipeline was brought to the budget of the configuration, where there is one.
        timing: both sides' times, every repeat.
        samples: every question with both answers.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    status: Literal["ok", "failed"]
    error: str | None = None
    traceback: str | None = None
    config: dict[str, Any]
    config_hash: str
    overrides: list[str] = []
    code_version: str | None = None
    environment: dict[str, Any]
    started: str
    seconds: float = Field(ge=0)
    dense: Side | None = None
    compressed: CompressedSide | None = None
    timing: GenerationComparison | None = None
    budget: MetBudget | None = None
    samples: list[SampleRecord] = []

    def write(self, path: Path) -> None:
        """Write the record in one step: whoever reads ``path`` sees the whole record or none.

        Raises:
            ConfigurationError: the folder cannot be written, or the disk is full.
        """
        write_atomically(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read a record back.

        Raises:
            ConfigurationError: there is none, it is damaged, or a newer schema wrote it; one line that names the file.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigurationError(
                f"{path} is no result of schema {SCHEMA_VERSION}: {where}: {first['msg']}"
            ) from error


def write_atomically(path: Path, text: str) -> None:
    """Write a file in one step, through a draft beside it: a reader sees all of it or the one before.

    Raises:
        UnwritableError: the folder cannot be written, or the disk is full.
    """
    draft = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise UnwritableError(f"{path} cannot be written: {error.strerror}") from error
