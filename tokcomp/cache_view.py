"""The read-only view of one layer's key/value cache. Notation: see :mod:`tokcomp.types`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokcomp.plugin_signals import SignalReader
from tokcomp.signals import Signal, declared

__all__ = ["CacheView"]


@dataclass(frozen=True, kw_only=True)
class CacheView(SignalReader):
    """What a :class:`~tokcomp.CachePolicy` sees of one layer's key/value cache.

    Attributes:
        layer: the layer. ``depth``: number of layers.
        keys, values: cached entries ``[b, g, l, d_head]``, keys rotated.
        valid: ``[b, g, l]``, False for padding.
        index: position of each entry in the uncompressed sequence ``[b, g, l]``, ascending, -1 for padding.
        vision: entries of vision tokens ``[b, g, l]`` bool.
        protected: entries of key tokens ``[b, g, l]`` bool.
        prompt: tokens of each sample's prompt, vision tokens included, before compression ``[b]``.
        after: text tokens that follow the prompt's last image ``[b]``; all its tokens where it has no image.
        initial: vision entries that the prefill wrote into this layer ``[b]``.
        generated: tokens that came after the prompt, in decoding those of this pass included.
        n_queries: tokens that this pass has read, in decoding mostly 1.
        group: query heads of each key/value head.
        memory: tensors ``[b, g, l]`` that the policy wants back at the next step. The runner keeps one mapping per
            request and layer, appends zeros for new entries, drops what leaves the cache and follows beams.
        padded, marked: False promises that ``valid`` is all True, ``protected`` all False, without a look at the device.
        prompt_tokens: the length of every sample's prompt, where it is known to be one; None: ask ``prompt``.
    """

    layer: int
    depth: int
    keys: Tensor
    values: Tensor
    valid: Tensor
    index: Tensor
    vision: Tensor
    protected: Tensor
    prompt: Tensor
    after: Tensor
    initial: Tensor
    generated: int = 0
    n_queries: int = 1
    group: int = 1
    memory: MutableMapping[str, Tensor]
    padded: bool = True
    marked: bool = True
    prompt_tokens: int | None = None
    _received: Tensor | None = field(default=None, repr=False)
    _attention_rows: Callable[[], Iterator[tuple[Tensor, Tensor]]] | None = field(default=None, repr=False)
    _queries: Tensor | None = field(default=None, repr=False)
    _rotation: Callable[[int], Tensor] | None = field(default=None, repr=False)
    _surveyed: Tensor | None = field(default=None, repr=False)
    _final: Tensor | None = field(default=None, repr=False)
    _known: dict[str, int] = field(default_factory=dict, repr=False)
    _digest: Tensor | None = field(default=None, repr=False)

    @property
    def batch_size(self) -> int:
        return self.keys.shape[0]

    @property
    def n_entries(self) -> int:
        """Entries of the longest row."""
        return self.keys.shape[2]

    @property
    def counts(self) -> Tensor:
        """Valid entries of each sample and head ``[b, g]``."""
        return self.valid.sum(dim=2)

    @property
    def longest_prompt(self) -> int:
        """The largest of ``prompt``; it is looked up on the device once, not at every step."""
        return self._looked_up("longest_prompt", lambda: self.prompt.max())

    @property
    def most_protected(self) -> int:
        """As many entries as no row has more of ``protected``; looked up once, not at every step."""
        return self._looked_up("most_protected", lambda: self.protected.sum(dim=2).max())

    def _looked_up(self, name: str, value: Callable[[], Tensor]) -> int:
        if name not in self._known:
            self._known[name] = int(value())
        return self._known[name]

    @property
    def device(self) -> torch.device:
        return self.keys.device

    @property
    def received(self) -> Tensor:
        """Attention that each entry received from the queries of this forward pass, summed over rows and over the query
        heads of its group ``[b, g, l]`` float32: after the prefill all prompt rows, or as many of the last ones as the policy
        asks for; in decoding the new token's row. A policy that takes the prompt's rows
        themselves (``Signal.ATTENTION_ROWS``) gets this in decoding only."""
        return declared(self._received, Signal.RECEIVED_ATTENTION)

    @property
    def attention_rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The prompt's last query rows, as many as the policy asks for, a few at a time: attention ``[b, h, t, l]`` in
        float32, 0 for padding and for what comes after the row, and which rows are real ``[b, t]``. Only right after the
        layer has run."""
        return declared(self._attention_rows, Signal.ATTENTION_ROWS)()

    @property
    def queries(self) -> Tensor:
        """Queries of the prompt's tokens in the order of the entries, not rotated ``[b, h, l, d_head]``; after the prefill
        only."""
        return declared(self._queries, Signal.QUERIES)

    def rotation(self, steps: int) -> Tensor:
        """The mean of the rotations to the next ``steps`` positions ``[b, d_head, d_head]``; takes ``Signal.QUERIES``."""
        return declared(self._rotation, Signal.QUERIES)(steps)

    @property
    def surveyed(self) -> Tensor:
        """What the policy's :meth:`~tokcomp.CachePolicy.survey` found in each layer ``[b, depth]``, NaN where it does
        not act."""
        return declared(self._surveyed, Signal.SURVEY)

    @property
    def final(self) -> Tensor:
        """Entries whose token was still alive after the last layer of the prefill ``[b, g, l]`` bool."""
        return declared(self._final, Signal.FINAL_TOKENS)

    @property
    def digest(self) -> Tensor:
        """An integer per sample that depends on its image pixels and prompt tokens only ``[b]``."""
        return declared(self._digest, Signal.DIGEST)
