"""The bookkeeping of one prompt: which token stands where in every layer, from the placeholders to the last step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from tokcomp.runner.apply import gather_tokens, renumber
from tokcomp.runner.images import Images
from tokcomp.runner.positions import close_up, next_after, take_columns

__all__ = ["Entries", "Past", "Prompt", "Request", "Sequence"]


@dataclass(frozen=True)
class Prompt:
    """The prompt as the model was given it, one column per token, before anything was dropped.

    Attributes:
        origin: ``[b, l]`` index of the placeholder among those of its sample, -1 for text, padding and placeholders that the
            vision stage left empty. Separators (newline tokens) have one, too.
        image: ``[b, l]`` which image of the sample it belongs to, -1 for text.
        sizes: ``[b, l]`` patches that the token stands for.
        protected: ``[b, l]`` key tokens.
        valid: ``[b, l]`` no padding and not empty.
        lengths: ``[b]`` tokens of each sample, padding left out, before anything was dropped.
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
    protected: Tensor
    valid: Tensor
    lengths: Tensor
    unit: Tensor | None = None
    call: Tensor | None = None
    stands: Tensor | None = None
    text_rows: int = 0
    text_valid: Tensor | None = None
    digest: Tensor | None = None

    @property
    def vision(self) -> Tensor:
        """Vision tokens ``[b, l]`` bool."""
        return self.origin >= 0

    @property
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
        n_vision: vision tokens of the longest row.
        uniform: every row has ``n_vision`` vision tokens.
        sizes: ``[b, l]`` patches that each token stands for, or None for what the prompt says.
    """

    index: Tensor
    valid: Tensor | None
    positions: Tensor
    offset: Tensor | None
    n_vision: int
    uniform: bool
    sizes: Tensor | None = None

    @property
    def length(self) -> int:
        return self.index.shape[1]

    def vision_counts(self, prompt: Prompt) -> Tensor:
        """Vision tokens of each row ``[b]``."""
        vision = gather_tokens(prompt.vision, self.index)
        return (vision if self.valid is None else vision & self.valid).sum(dim=1)

    def slots(self, prompt: Prompt) -> tuple[Tensor, Tensor]:
        """Where the vision tokens stand ``[b, n]``, ascending, and which of these are real ``[b, n]``."""
        vision = gather_tokens(prompt.vision, self.index)
        if self.valid is not None:
            vision = vision & self.valid
        slots = (~vision).to(torch.uint8).argsort(dim=1, stable=True)[:, : self.n_vision]
        real = torch.ones_like(slots, dtype=torch.bool) if self.uniform else vision.gather(1, slots)
        return slots, real

    def sizes_at(self, prompt: Prompt, columns: Tensor) -> Tensor:
        """Patches that the tokens at ``columns`` ``[b, k]`` of this sequence stand for."""
        if self.sizes is not None:
            return self.sizes.gather(1, columns)
        return prompt.sizes.gather(1, self.index.gather(1, columns))

    def take(self, taken: Tensor, valid: Tensor | None, *, n_vision: int, uniform: bool, number_anew: bool,
             first: int | Tensor = 0) -> Sequence:  # fmt: skip
        """The sequence of the columns ``taken`` ``[b, k]``, of which ``valid`` are no padding.

        Numbered anew, the tokens of a row get ``first`` (``[b|1, 1]``), ``first`` + 1...; where positions have planes see
        :func:`~tokcomp.runner.positions.close_up`.
        """
        positions, offset = take_columns(self.positions, taken), self.offset
        if number_anew:
            if positions.dim() == 2:
                anew = torch.arange(taken.shape[1], device=taken.device)[None] if valid is None else renumber(valid)
                anew = anew + first
                lag = positions[:, -1] - anew[:, -1]
            else:
                anew, lag = self._closed_up(taken, valid)
            positions, offset = anew, lag if offset is None else offset + lag
        sizes = None if self.sizes is None else self.sizes.gather(1, taken)
        return Sequence(index=self.index.gather(1, taken), valid=valid, positions=positions, offset=offset,
                        n_vision=n_vision, uniform=uniform, sizes=sizes)  # fmt: skip

    def reordered(self, stands: Tensor, *, numbered_anew: bool) -> Sequence:
        """The same tokens in another order: in the place of column c stands the token of column ``stands[c]`` ``[b, l0]``.

        Position ids move with the tokens, but the plain numbers 0, 1, 2... of a sequence that was numbered anew.
        """
        places = torch.arange(self.length, device=self.index.device).expand_as(self.index)
        place_of = torch.zeros_like(stands).scatter(1, self.index, places)
        order = place_of.gather(1, stands.gather(1, self.index))
        stay = numbered_anew and self.positions.dim() == 2
        positions = self.positions if stay else take_columns(self.positions, order)
        return replace(self, index=self.index.gather(1, order), positions=positions)

    def _closed_up(self, taken: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        none = torch.zeros_like(self.index, dtype=torch.bool)
        kept = none.scatter(1, taken, True if valid is None else valid)
        used = ~none if self.valid is None else self.valid
        moved, lag = close_up(self.positions, used, kept, next_after(self.positions).expand(taken.shape[0]))
        return take_columns(moved, taken), lag


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
        """Padded entries of each sample, mean over heads ``[b]``, or None for none."""
        return None if self.valid is None else (~self.valid).sum(dim=2).double().mean(dim=1)


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
            sample ``[b]`` or None for none. Kept only where a policy acts in decoding; elsewhere lengths just grow.
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
    padded: bool = True
    next_position: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.long))
    first_position: int | Tensor = 0
    past: Past | None = None
    unnumbered: int | Tensor = 0
    moved: bool = False

    @property
    def batch_size(self) -> int:
        return self.prompt.origin.shape[0]

    @property
    def start(self) -> int:
        """Columns of the conversation before this prompt."""
        return 0 if self.past is None else self.past.vision.shape[1]

    @property
    def end(self) -> int:
        """Columns of the conversation up to the end of this prompt."""
        return self.start + self.prompt.origin.shape[1]

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
        return None if self.padded or before is None else before + self.prompt.origin.shape[1]

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
