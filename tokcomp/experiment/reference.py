"""The dense side of a comparison: the model's own answers, made once and shared by every run against them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tokcomp.errors import ConfigurationError
from tokcomp.experiment.config import RunConfig
from tokcomp.experiment.result import Side, write_atomically

__all__ = ["Reference", "reference_hash"]

_DECIDES = ("model", "benchmark", "seed", "device", "dtype")
"""Settings that the dense model's answers depend on."""


class Reference(BaseModel):
    """What the dense model answered.

    Attributes:
        texts, scores: answer and score of every sample, in the benchmark's order.
        side: its figures; time is measured in turns with the compressed model, so it is not among them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    texts: list[str]
    scores: list[float]
    side: Side

    def write(self, path: Path) -> None:
        """Write it in one step.

        Raises:
            ConfigurationError: the folder cannot be written, or the disk is full.
        """
        write_atomically(path, self.model_dump_json())

    @classmethod
    def read(cls, path: Path) -> Reference | None:
        """Read it back; None where there is none, or none that can be used.

        Raises:
            ConfigurationError: the file is there and cannot be read.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            return None  # damaged: the caller makes it anew in its place
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


def reference_hash(config: RunConfig) -> str:
    """Names the dense side of a run: SHA-256 of the settings that it depends on, hexadecimal."""
    settings = config.model_dump(mode="json", include=set(_DECIDES))
    settings["memory"] = config.measure.memory
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
