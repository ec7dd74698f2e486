"""What the language stage refuses before anything runs."""

from __future__ import annotations

from typing import Any

from tokcomp.errors import UnsupportedError
from tokcomp.models.adapter import Decoder
from tokcomp.runner.cache import CompressedLayer
from tokcomp.runner.turns import Follow

__all__ = ["refuse_counting", "refuse_no_cache", "refuse_other_rows", "wants_cache"]


def wants_cache(decoder: Decoder, kwargs: dict[str, Any]) -> bool:
    """Whether a call of the decoder is to give back a cache."""
    wanted = kwargs.get("use_cache")
    return bool(decoder.config.use_cache if wanted is None else wanted)


def refuse_no_cache(cache: Any, policy: str | None) -> None:
    """Refuse what would run, but not do what was asked."""
    if cache is None and policy is not None:
        raise UnsupportedError(
            f"cache policy '{policy}' has no cache to act on: run with use_cache=True, or leave it out"
        )


def refuse_counting(follow: Follow, policy: str | None) -> None:
    """Raise where turns of text of different length meet a ``policy`` by whose rule they are of one length."""
    if policy is not None and follow.valid is not None:
        raise UnsupportedError(
            f"cache policy '{policy}' goes by the number of tokens since the prompt, and the turns of this batch are of "
            "different length: batch turns of text of one length, or go on with one conversation at a time"
        )


def refuse_other_rows(layer: CompressedLayer, batch: int) -> None:
    """Raise where a batch follows on a cache of another one."""
    held = batch if layer.rows is None else layer.rows.shape[0]
    if held != batch:
        raise UnsupportedError(
            f"{batch} rows follow on a cache of {held}: for beams or num_return_sequences in a later turn, repeat the "
            "conversations first, with cache.batch_repeat_interleave(...)"
        )
