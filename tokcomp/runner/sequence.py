"""A prompt's columns and the sequences that enter the layers: which token stands where."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tokcomp.deferred import deferrable, deferred
from tokcomp.runner.apply import renumber, true_first
from tokcomp.runner.positions import close_up, next_after, take_columns

__all__ = ["Prompt", "Sequence"]


@deferrable("origin", "image", "sizes", "unit", "call")
@dataclass(frozen=True)
class Prompt:
    """The prompt as the model was given it, one column per token, before anything was dropped.

    Attributes:
        origin: ``[b, l]`` index of the placeholder among those of its sample, -1 for text, padding and placeholders that the
            vision stage left empty. Separators (newline tokens) have one, too.
        image: ``[b, l]`` which image of the sample it belongs to, -1 for text.
        sizes: ``[b, l]`` patches that the token stands for.
        vision: ``[b, l]`` where a vision token stands: ``origin`` is not -1.
        protected: ``[b, l]`` key tokens.
        valid: ``[b, l]`` no padding and not empty.
        lengths: ``[b]`` tokens of each sample, padding left out, before anything was dropped.
        texts, visions, behind: of each sample the tokens of text, the vision tokens that are left and the tokens of text behind
            the last image, as the host knows them.
        present: ``[b, l]`` no padding, empty or not; None: no sample has any.
        text_rows: real tokens after the last image, of the longest row.
        text_valid: ``[b, text_rows]`` which of the last rows are such tokens; None without images.
        unit: ``[b, l]`` for placeholders the unit of the tower call ``call`` ``[b, l]`` that they were made for, -1 for
            separators and text.
        stands: ``[b, l]`` for a column whose token stays, the column whose token shall stand there; None: its own.
        digest: ``[b]`` or None.
    """

    origin: Tensor
    image: Tensor
    sizes: Tensor
    vision: Tensor
    protected: Tensor
    valid: Tensor
    lengths: Tensor
    texts: tuple[int, ...]
    visions: tuple[int, ...]
    behind: tuple[int, ...] = ()
    present: Tensor | None = None
    unit: Tensor | None = None
    call: Tensor | None = None
    stands: Tensor | None = None
    text_rows: int = 0
    text_valid: Tensor | None = None
    digest: Tensor | None = None

    @classmethod
    def of_text(cls, valid: Tensor, present: Tensor | None, digest: Tensor | None = None) -> Prompt:
        """A prompt without images, of which ``valid`` ``[b, l]`` is no padding."""
        none, (b, length) = torch.zeros_like(valid), valid.shape
        lengths = valid.sum(dim=1)
        texts = (length,) * b if present is None else tuple(lengths.tolist())
        text = deferred(lambda: none.long() - 1)
        return cls(origin=text, image=text, sizes=deferred(none.float), vision=none, protected=none, valid=valid,
                   lengths=lengths, texts=texts, visions=(0,) * b, digest=digest,
                   present=None if min(texts) == length else present)  # fmt: skip

    @cached_property
    def after(self) -> Tensor:
        """Text tokens that follow the last image ``[b]``; all tokens of a prompt without one."""
        return self.lengths if self.text_valid is None else self.text_valid.sum(dim=1)


@dataclass(frozen=True)
class Sequence:
    """The tokens that enter a layer, right-aligned.

    Attributes:
        index: ``[b, l]`` column of the prompt that each token came from.
        valid: ``[b, l]``, or None where no row holds padding.
        positions: ``[b|1, l]`` position ids, or ``[p, b|1, l]`` planes of them (multimodal rotary positions).
        offset: ``[b]`` what the numbering of this sequence lags behind the model's own, or None for nothing.
        vision: ``[b, l]`` which of them are vision tokens.
        texts, counts: of each row the tokens of text and the vision tokens, as the host knows them.
        sizes: ``[b, l]`` patches that each token stands for, or None for what the prompt says.
    """

    index: Tensor
    valid: Tensor | None
    positions: Tensor
    offset: Tensor | None
    vision: Tensor
    texts: tuple[int, ...]
    counts: tuple[int, ...]
    sizes: Tensor | None = None

    @property
    def length(self) -> int:
        return self.index.shape[1]

    @property
    def n_vision(self) -> int:
        """Vision tokens of the longest row."""
        return max(self.counts)

    @property
    def uniform(self) -> bool:
        """Whether every row has ``n_vision`` vision tokens."""
        return len(set(self.counts)) == 1

    def slots(self) -> tuple[Tensor, Tensor]:
        """Where the vision tokens stand ``[b, n]``, ascending, and which of these are real ``[b, n]``."""
        slots = true_first(self.vision)[:, : self.n_vision]
        real = torch.ones_like(slots, dtype=torch.bool) if self.uniform else self.vision.gather(1, slots)
        return slots, real

    def sizes_at(self, prompt: Prompt, columns: Tensor) -> Tensor:
        """Patches that the tokens at ``columns`` ``[b, k]`` of this sequence stand for."""
        if self.sizes is not None:
            return self.sizes.gather(1, columns)
        return prompt.sizes.gather(1, self.index.gather(1, columns))

    def take(self, taken: Tensor, valid: Tensor | None, vision: Tensor, counts: tuple[int, ...], *, number_anew: bool,
             first: int | Tensor = 0, stands: Tensor | None = None) -> Sequence:  # fmt: skip
        """The sequence of the columns ``taken`` ``[b, k]``, of which ``valid`` are no padding and, of all ``[b, l]``,
        ``vision`` are vision tokens that stay, ``counts`` of each row.

        Numbered anew, the tokens of a row get ``first`` (``[b|1, 1]``), ``first`` + 1...; where positions have planes see
        :func:`~tokcomp.runner.positions.close_up`.
        """
        offset, places = self.offset, taken if stands is None else stands.gather(1, taken)
        if not number_anew:
            positions = take_columns(self.positions, places)
        else:
            positions, lag = self._numbered_anew(taken, places, valid, first)
            offset = lag if offset is None else offset + lag
        sizes = None if self.sizes is None else self.sizes.gather(1, places)
        return Sequence(index=self.index.gather(1, places), valid=valid, positions=positions, offset=offset,
                        vision=vision.gather(1, places), texts=self.texts, counts=counts, sizes=sizes)  # fmt: skip

    def _numbered_anew(self, taken: Tensor, places: Tensor, valid: Tensor | None,
                       first: int | Tensor) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Position ids of the columns ``taken``, whose tokens come from ``places``, and what follows lags behind by so much more
        ``[b]``. Numbers without planes go by the place, those of planes go with the token."""
        if self.positions.dim() == 2:
            anew = torch.arange(taken.shape[1], device=taken.device)[None] if valid is None else renumber(valid)
            if isinstance(first, Tensor) or first:
                anew = anew + first
            return anew, take_columns(self.positions, taken[:, -1:])[:, 0] - anew[:, -1]
        none = torch.zeros_like(self.index, dtype=torch.bool)
        kept = none.scatter(1, taken, True if valid is None else valid)
        used = ~none if self.valid is None else self.valid
        moved, lag = close_up(self.positions, used, kept, next_after(self.positions).expand(taken.shape[0]))
        return take_columns(moved, places), lag
