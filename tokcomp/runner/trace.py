"""What happened to the tokens of each prompt, readable while the model runs and afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from tokcomp.runner.request import Request

__all__ = ["Fate", "PerSample", "Record", "Trace"]


class PerSample(tuple[Any, ...]):
    """One value per sample of the batch. With a single sample it also stands for that value: it compares equal to it, and
    ``int()``, ``float()`` and formatting take it."""

    __slots__ = ()

    def _only(self) -> Any:
        if len(self) != 1:
            raise TypeError(f"a batch of {len(self)} samples has {len(self)} values, not one: index it by sample")
        return self[0]

    def __int__(self) -> int:
        return int(self._only())

    def __index__(self) -> int:
        return int(self._only())

    def __float__(self) -> float:
        return float(self._only())

    def __format__(self, spec: str) -> str:
        return format(self._only(), spec) if len(self) == 1 else format(str(tuple(self)), spec)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int | float):
            return len(self) == 1 and bool(self[0] == other)
        return tuple(self) == other

    def __ne__(self, other: object) -> bool:  # tuple has one of its own
        return not self == other

    def __hash__(self) -> int:
        return hash(self[0]) if len(self) == 1 else hash(tuple(self))


@dataclass(frozen=True)
class Fate:
    """What became of one image patch.

    Attributes:
        kind: ``kept`` (it, or the token it stands for, reached the last layer), ``merged`` (into the token that stands at
            patch ``into``, which reached the last layer) or ``dropped``.
        into: the patch at which the token stands that holds it, as an index into the prompt's image placeholders; itself
            where it was not merged, None where it was dropped before any merge.
        stage: for dropped patches ``vision`` or ``prefill``.
        where: for dropped patches the vision site (``block(0)``) or the language-model layer after which it left.
    """

    kind: str
    into: int | None = None
    stage: str | None = None
    where: str | int | None = None


class Trace:
    """The prompts read since :meth:`~tokcomp.Pipeline.attach`, latest last."""

    def __init__(self) -> None:
        self.requests: list[Record] = []

    @property
    def last(self) -> Record:
        """The latest prompt.

        Raises:
            LookupError: none was read yet.
        """
        if not self.requests:
            raise LookupError("no prompt with image tokens was read since attach()")
        return self.requests[-1]

    def remember(self, read: Callable[[], Request]) -> None:
        """Note a prompt, whose request ``read`` gives when it is asked for."""
        self.requests.append(Record(read))

    def clear(self) -> None:
        """Forget the prompts read so far."""
        self.requests.clear()


class Record:
    """One prompt: a batch of samples. Values that differ between samples are :class:`PerSample`."""

    def __init__(self, read: Callable[[], Request]) -> None:
        self._read = read

    @cached_property
    def _request(self) -> Request:
        return self._read()

    @property
    def batch_size(self) -> int:
        return self._request.batch_size

    @cached_property
    def image_tokens(self) -> PerSample:
        """Image placeholders of each sample's prompt, before anything was dropped."""
        return PerSample(self._request.placeholders)

    @cached_property
    def after_vision(self) -> PerSample:
        """Vision tokens that the vision stage left."""
        return PerSample(self._request.prompt.vision.sum(dim=1).tolist())

    @cached_property
    def vision_tokens(self) -> tuple[PerSample, ...]:
        """Vision tokens that enter each language-model layer."""
        return tuple(PerSample(len(row) for row in layer) for layer in self.kept)

    @cached_property
    def sequence_tokens(self) -> tuple[PerSample, ...]:
        """All tokens, text included, that enter each language-model layer."""
        return tuple(
            PerSample([layer.length] * self.batch_size if layer.valid is None else layer.valid.sum(dim=1).tolist())
            for layer in self._request.layers
        )

    @property
    def equivalent_tokens(self) -> PerSample:
        """Mean over the layers of the vision tokens that enter them."""
        layers = self.vision_tokens
        return PerSample(sum(layer[i] for layer in layers) / len(layers) for i in range(self.batch_size))

    @property
    def summed(self) -> tuple[int, ...]:
        """Layers whose attention was made together with what each key receives of all rows, so that a policy's sums cost no
        second product of queries and keys."""
        return tuple(sorted(self._request.summed))

    @property
    def cache_lengths(self) -> tuple[PerSample, ...]:
        """Key/value entries that each layer holds now, text included, padding not; where heads hold different numbers,
        their mean."""
        return tuple(self._lengths(entry.length, entry.padding()) for entry in self._request.entries)

    @cached_property
    def kept(self) -> tuple[PerSample, ...]:
        """Which of the original vision tokens enter each layer: per layer, one 1-D tensor per sample with indices into the
        prompt's image placeholders, in the order in which they stand. A merged token stands under one member's index."""
        memo: dict[int, PerSample] = {}
        for layer in self._request.layers:
            if id(layer) not in memo:
                origin = self._request.prompt.origin.to(layer.index.device).gather(1, layer.index)
                if layer.valid is not None:
                    origin = origin.masked_fill(~layer.valid, -1)
                memo[id(layer)] = PerSample(row[row >= 0].cpu() for row in origin)
        return tuple(memo[id(layer)] for layer in self._request.layers)

    @cached_property
    def protected(self) -> PerSample:
        """Key tokens of each sample, as indices into the prompt's image placeholders."""
        prompt = self._request.prompt
        rows = zip(prompt.origin, prompt.protected & prompt.vision, strict=True)
        return PerSample(origin[mask].cpu() for origin, mask in rows)

    @property
    def images_of(self) -> tuple[int, ...]:
        """Images and videos of each sample."""
        return tuple(self._request.images_of)

    @property
    def rows_of(self) -> tuple[int, ...]:
        """Rows of the vision tower (images, tiles of large images, frames) of each sample."""
        return tuple(sum(self._tiles(*row) for row in rows) for rows in self._request.rows_of)

    @cached_property
    def tower_tokens(self) -> tuple[tuple[int, ...], ...]:
        """Per tower block, the tokens that enter it of every row of the batch (see ``rows_of``), prefix included."""
        request = self._request
        blocks = len(request.images[0].block_tokens) if request.images else 0

        def each(block: int, call: int, row: int) -> list[int]:
            images, tiles = request.images[call], self._tiles(call, row)
            prefix = _row(images.block_tokens[block], row) - images.patches[row] if tiles > 1 else 0
            return [(_row(images.block_tokens[block], row) - prefix) // tiles + prefix] * tiles

        return tuple(
            tuple(count for rows in request.rows_of for row in rows for count in each(block, *row))
            for block in range(blocks)
        )

    @cached_property
    def projector_tokens(self) -> tuple[int, ...]:
        """Tokens of every row of the batch (see ``rows_of``) that the projector computes."""
        request = self._request
        return tuple(
            _row(request.images[call].projected_tokens, row) // self._tiles(call, row)
            for sample in request.rows_of
            for call, row in sample
            for _ in range(self._tiles(call, row))
        )

    def _tiles(self, call: int, row: int) -> int:
        """How many rows of the tower one row of a token table is: more than one where units lie across the tiles of an image,
        which nothing can leave inside the tower."""
        layout = self._request.images[call].layout
        return len(layout.pixels[row]) if layout.regrouped and layout.pixels is not None else 1

    @property
    def decode_lengths(self) -> tuple[tuple[PerSample, ...], ...] | None:
        """Per pass after the prefill and layer, the entries that its attention read, its own included; None where no policy
        acts in decoding, so that lengths just grow by one."""
        reads = self._request.reads
        if reads is None:
            return None
        return tuple(tuple(self._lengths(*read) for read in step) for step in zip(*reads, strict=True))

    def _lengths(self, length: int, padding: Tensor | None) -> PerSample:
        if padding is None:
            return PerSample([length] * self.batch_size)
        counts = (length - padding.double().mean(dim=1)).tolist()
        return PerSample(int(count) if count == int(count) else count for count in counts)

    @cached_property
    def fate(self) -> PerSample:
        """What became of every image patch: per sample a list of :class:`Fate`, by placeholder index."""
        from tokcomp.runner.fate import fates

        return PerSample(fates(self._request, self.kept))

    def summary(self) -> str:
        """A few lines for a terminal: tokens at each stage, cache entries, what was merged or dropped."""
        from tokcomp.runner.fate import summarise

        return summarise(self)


def _row(counts: Tensor | int, row: int) -> int:
    return counts if isinstance(counts, int) else int(counts[row])
