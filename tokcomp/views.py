"""The read-only views that strategies get of each stage. Notation: see :mod:`tokcomp.types`."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokcomp.deferred import deferrable
from tokcomp.plugin_signals import SignalReader
from tokcomp.signals import Signal, declared

__all__ = ["PrefillView", "TokenView"]


@dataclass(frozen=True, kw_only=True)
class TokenView(SignalReader):
    """What the views of vision tokens share.

    Attributes:
        tokens: states of the vision tokens present ``[b, n, d]``.
        valid: ``[b, n]``, False where a row is padding of a ragged batch (at its end).
        sizes: how many original patches each token stands for ``[b, n]`` float.
        origin: index of the original token that each one stands at ``[b, n]``.
        protected: key tokens ``[b, n]`` bool.
        padded, marked: False promises, without a look at the device, that ``valid`` is all True, ``protected`` all False.
    """

    tokens: Tensor
    valid: Tensor
    sizes: Tensor
    origin: Tensor
    protected: Tensor
    padded: bool = True
    marked: bool = True
    _digest: Tensor | None = field(default=None, repr=False)

    @property
    def batch_size(self) -> int:
        return self.valid.shape[0]

    @property
    def n_tokens(self) -> int:
        """Tokens of the longest row (rows of a ragged batch may have fewer, see ``counts``)."""
        return self.valid.shape[1]

    @property
    def counts(self) -> Tensor:
        """Tokens of each row ``[b]``."""
        return self.valid.sum(dim=1)

    @property
    def known_counts(self) -> Tensor | int:
        """``counts``; one number, which costs no look at the device, where no row holds padding."""
        return self.counts if self.padded else self.n_tokens

    @property
    def device(self) -> torch.device:
        return self.valid.device

    @property
    def digest(self) -> Tensor:
        """An integer per row that depends on its own content only, pixels and prompt tokens ``[b]``: the seed of
        randomness that does not depend on the neighbours in a batch."""
        return declared(self._digest, Signal.DIGEST)


@deferrable("tokens", "sizes", "origin", "protected", "image", "initial", "_rows")
@dataclass(frozen=True, kw_only=True)
class PrefillView(TokenView):
    """What a :class:`~tokcomp.PrefillFilter` sees after one language-model layer.

    Attributes:
        layer: the layer that has just run. ``depth``: number of layers.
        tokens: hidden states of the vision tokens still alive ``[b, n, d]``, prompt order.
        valid: ``[b, n]``, False where a row is padding of a ragged batch.
        sizes: original patches that each token stands for ``[b, n]`` float.
        origin: index of each token among the prompt's image placeholders ``[b, n]``.
        image: which image of the prompt each token belongs to ``[b, n]``, from 0.
        protected: key tokens ``[b, n]`` bool.
        initial: vision tokens of each sample when the prefill began ``[b]``.
        memory: what the filter noted in this prefill, by a name of its own; empty at first. Tensors have the batch first.
    """

    layer: int
    depth: int
    image: Tensor
    initial: Tensor
    memory: MutableMapping[str, Tensor] = field(default_factory=dict)
    _attention: Tensor | None = field(default=None, repr=False)
    _rows: Tensor | None = field(default=None, repr=False)
    _keys: Tensor | None = field(default=None, repr=False)
    _text: Tensor | None = field(default=None, repr=False)
    _text_valid: Tensor | None = field(default=None, repr=False)
    _text_keys: Tensor | None = field(default=None, repr=False)
    _final_norm: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)

    @property
    def attention(self) -> Tensor:
        """Attention of the query rows over the vision tokens ``[b, h, t, n]``: softmax in float32 over the whole
        sequence, vision columns not renormalised; 0 for padded rows and columns. The rows are the last prompt token or
        the text tokens after the last image, by the filter's ``queries``."""
        return declared(self._attention, Signal.QUERY_ATTENTION)

    @property
    def rows(self) -> Tensor:
        """Which query rows of ``attention`` are real ``[b, t]`` bool."""
        return declared(self._rows, Signal.QUERY_ATTENTION)

    @property
    def keys(self) -> Tensor:
        """Rotated attention keys of the vision tokens ``[b, g, n, d_head]``."""
        return declared(self._keys, Signal.KEYS)

    @property
    def text(self) -> Tensor:
        """States of the text tokens after the last image ``[b, t, d]``, right-aligned: see ``text_valid``."""
        return declared(self._text, Signal.TEXT)

    @property
    def text_valid(self) -> Tensor:
        """Which rows of ``text`` are real ``[b, t]`` bool."""
        return declared(self._text_valid, Signal.TEXT)

    @property
    def text_keys(self) -> Tensor:
        """Rotated attention keys of those text tokens ``[b, g, t, d_head]``; takes ``Signal.KEYS`` as well."""
        return declared(self._text_keys, Signal.TEXT if self._text is None else Signal.KEYS)

    @property
    def final_norm(self) -> Callable[[Tensor], Tensor]:
        """The model's norm before its output head, a function of states ``[..., d]``."""
        return declared(self._final_norm, Signal.FINAL_NORM)
