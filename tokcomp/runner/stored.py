"""Quantized caches: another cache layer stores the entries, and nothing leaves them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

from tokcomp.errors import UnsupportedError
from tokcomp.runner.cache import CompressedLayer
from tokcomp.runner.request import Request

__all__ = ["StoredLayer"]


class StoredLayer(CompressedLayer):
    """A layer of its own length whose keys and values ``store`` holds, which gives them out for each pass.

    Every layer has to attend in full, which transformers' quantized caches ask for, too.
    """

    def __init__(self, request: Request, number: int, store: DynamicLayer) -> None:
        super().__init__(request, number)
        self.store = store

    def _write(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        written: tuple[Tensor, Tensor] = self.store.update(keys, values, *args, **kwargs)
        return written

    @property
    def length(self) -> int:
        return int(self.store.get_seq_length())

    def tensors(self) -> tuple[Tensor, ...]:
        held = (
            self.store.keys,
            self.store.values,
            *_parts(self.store._quantized_keys),
            *_parts(self.store._quantized_values),
        )
        return held if self.is_initialized else ()

    def held_keys(self) -> Tensor:
        """Raises:
        UnsupportedError: always, since entries are given out for passes only.
        """
        raise UnsupportedError(
            "a quantized cache does not show its keys ahead of a pass, which this prefill strategy looks at in a later turn: use "
            "the default dynamic cache, or a strategy that reads the attention of a layer that has run, such as fastv"
        )

    def reset(self) -> None:
        super().reset()
        self.store.reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Raises:
        UnsupportedError: this transformers reorders no quantized entries (before 5.24).
        """
        if type(self.store).reorder_cache is DynamicLayer.reorder_cache:
            raise UnsupportedError(
                f"{type(self.store).__name__} does not follow beams in this version of transformers: give num_beams=1, or the "
                "default dynamic cache"
            )
        self.store.reorder_cache(beam_idx)
        self._each_table(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._refuse_rows()

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._refuse_rows()

    def _refuse_rows(self) -> None:
        raise UnsupportedError(
            "the rows of a quantized cache cannot be selected or repeated: expand the prompt's batch instead"
        )


def _parts(quantized: Any) -> tuple[Tensor, ...]:
    """The plain tensors behind a quantized one: those of a tuple (HQQ, FP8) or of a tensor subclass (quanto)."""
    if isinstance(quantized, tuple):
        return tuple(plain for part in quantized for plain in _parts(part))
    if hasattr(quantized, "__tensor_flatten__"):
        names, _ = quantized.__tensor_flatten__()
        return tuple(plain for name in names for plain in _parts(getattr(quantized, name)))
    return (quantized,) if isinstance(quantized, Tensor) else ()
