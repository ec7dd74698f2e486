"""The shipped model and processor."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from tokcomp.embedded.paths import WEIGHTS


def load_model(
    dtype: torch.dtype = torch.float32, attn_implementation: str = "sdpa", directory: Path = WEIGHTS
) -> LlavaForConditionalGeneration:
    """The shipped model, ready to answer.

    Args:
        dtype: the weights lie on disk in half precision and are loaded as this.
        attn_implementation: ``"sdpa"``, or ``"eager"`` where attention weights are wanted.
        directory: where the model lies, by default the shipped one.
    """
    model = LlavaForConditionalGeneration.from_pretrained(
        directory, dtype=dtype, attn_implementation=attn_implementation, local_files_only=True
    )
    return cast(LlavaForConditionalGeneration, model.eval())


def load_processor(directory: Path = WEIGHTS) -> LlavaProcessor:
    """The processor that goes with `load_model`."""
    return cast(LlavaProcessor, LlavaProcessor.from_pretrained(directory, local_files_only=True))
