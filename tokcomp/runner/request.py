"""The bookkeeping of one prompt: which token stands where in every layer, from the placeholders to the last step."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from tokcomp.runner.images import Images
from tokcomp.runner.sequence import Prompt, Sequence

__all__ = ["Entries", "Past", "Prompt", "Request", "Sequence"]


@dataclass
class Entries:
    """How many entries one layer's cache holds now.

    Attributes:
        length: physical length, padding included.
        valid: ``[b, 1|g, m]`` which of the first m are no padding, or None for all.
    """

    length: int = 0
    valid: Tensor | None = None

    def padding(self) -> Tensor | None:
        """Padded entries of each sample and head ``[b, 1|g]``, or None for none."""
        return None if self.valid is None else (~self.valid).sum(dim=2)


@dataclass(frozen=True)
class Past:
    """The columns of a conversation that were read before a later turn's prompt.

    Attributes:
        vision, protected: ``[b, c]`` bool, see :class:`Prompt`.
        lengths: tokens of each sample's earlier prompts ``[b]``.
        equal: their number, where it is known to be one for all samples.
    """

    vision: Tensor
    protected: Tensor
    lengths: Tensor
    equal: int | None


@dataclass
class Request:
    """One prompt (a batch of samples) and what became of its tokens.

    Attributes:
        prompt: the prompt's columns; those of a later turn are counted from its own first one.
        past: what the conversation had read before this prompt, None where it begins with it.
        images: what the vision stage knows, one item per tower call.
        rows_of: for every sample, for each row of the tower (image, tile, frame): which item of ``images`` and which row.
        images_of: how many images and videos each sample has.
        placeholders: how many placeholders each sample has.
        layers: the sequence that entered each layer.
        merges: after a layer at which tokens were merged: for every column of the prompt ``[b, l]`` the column of the
            token that it was merged into, its own where it was not.
        entries: the cache of each layer, as it is now.
        reads: per layer and later pass, the entries that its attention read: physical length, and padded entries of each
            sample and head ``[b, 1|g]`` or None for none. Kept only where a policy acts in decoding; elsewhere lengths just grow.
        summed: layers whose attention was made together with its sums over all rows.
        padded: whether a sample's prompt may hold padding; False promises that all prompts are equally long.
        next_position: ``[b|1]`` position id of the next token, in the model's own numbering.
        first_position: the position id that the prompt begins with, or ``[b|1, 1]`` of them.
        unnumbered: columns behind the prompt that have no position, since they are padding: of all, or of each row of the
            latest pass ``[b]``.
        moved: what entered the first layer no longer stands in the prompt's columns.
    """

    prompt: Prompt
    images: list[Images]
    rows_of: list[list[tuple[int, int]]]
    images_of: list[int]
    placeholders: list[int]
    layers: list[Sequence] = field(default_factory=list)
    merges: dict[int, Tensor] = field(default_factory=dict)
    entries: list[Entries] = field(default_factory=list)
    reads: list[list[tuple[int, Tensor | None]]] | None = None
    summed: set[int] = field(default_factory=set)
    padded: bool = True
    next_position: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.long))
    first_position: int | Tensor = 0
    past: Past | None = None
    unnumbered: int | Tensor = 0
    moved: bool = False

    @property
    def batch_size(self) -> int:
        return self.prompt.valid.shape[0]

    @property
    def start(self) -> int:
        """Columns of the conversation before this prompt."""
        return 0 if self.past is None else self.past.vision.shape[1]

    @property
    def end(self) -> int:
        """Columns of the conversation up to the end of this prompt."""
        return self.start + self.prompt.valid.shape[1]

    @cached_property
    def vision(self) -> Tensor:
        """Vision tokens among the conversation's columns ``[b, end]`` bool."""
        return self.prompt.vision if self.past is None else torch.cat([self.past.vision, self.prompt.vision], dim=1)

    @cached_property
    def protected(self) -> Tensor:
        """Key tokens among them ``[b, end]`` bool."""
        own = self.prompt.protected
        return own if self.past is None else torch.cat([self.past.protected, own], dim=1)

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each sample's prompts, this one and those before ``[b]``."""
        return self.prompt.lengths if self.past is None else self.past.lengths + self.prompt.lengths

    @property
    def equal(self) -> int | None:
        """``lengths``, where they are known to be one number."""
        before = 0 if self.past is None else self.past.equal
        return None if self.padded or before is None else before + self.prompt.valid.shape[1]

    def follows(self, past: Past, entries: list[Entries], first_position: Tensor) -> None:
        """This prompt is a later turn's: it begins at ``first_position`` ``[b|1, 1]``, on a cache that holds ``entries``."""
        self.past, self.entries, self.first_position = past, entries, first_position

    def advance(self, following: Tensor, rows: Tensor | None) -> None:
        """Tokens were read, of the rows ``rows`` ``[b]`` (None: all) of this request; ``following`` ``[b|1]`` is what comes
        next."""
        if following.shape[0] > 1 and rows is not None:
            following = following.new_zeros(self.batch_size).index_copy(0, rows, following)
        self.next_position = following

    def passed(self, rows: Tensor, seen: int) -> Past:
        """This prompt and what followed, ``seen`` columns in all, as the past of the rows ``rows`` ``[b]``."""
        more = (0, seen - self.end)
        vision, protected = (nn.functional.pad(table[rows], more) for table in (self.vision, self.protected))
        return Past(vision, protected, self.lengths[rows], self.equal)
