"""The one value that a strategy returns: which tokens survive, merged how, protected or not."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from tokcomp.deferred import deferrable, deferred

__all__ = ["Selection"]


@deferrable("keep", "ragged", "_mask")
@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which tokens survive, and in what order; pruning and merging share it.

    Shapes are given for tokens, ``[b, ...]``. A cache policy may return a selection per key/value head, with a head axis
    after the batch axis: ``keep`` ``[b, g, k]``.

    Attributes:
        keep: ``[b, k]`` integer indices of the surviving tokens *in the order in which they shall stand*; -1 pads a
            ragged batch (at the end of a row). With ``assign``, the slot's representative.
        assign: ``[b, n]`` the slot of ``keep`` that each input token is merged into, -1 where it is dropped. None:
            nothing is merged.
        weight: ``[b, n]`` the weight of each input token in its slot. None: its size (``combine`` mean) or 1 (sum).
        combine: ``mean``: a slot is the weighted mean of its members; ``sum``: their weighted sum, not normalised.
        mix: ``[b, k, n]`` the weight of every input token in every slot, not normalised, where tokens take part in several
            slots; it takes the place of ``weight``, and ``assign`` then says only to which slot a token counts.
        cls_first: ``[b]`` True where slot 0 is the tower's CLS token itself; ``keep`` names the token at whose place it
            stands, which may be merged into another slot. None: nowhere.
        protect: ``[b, k]`` the key tokens that later stages must keep (added to those marked before). None: no new ones.
        ragged: False promises that no entry of ``keep`` is -1, which spares the runner a look at the device.
        ascending: True promises that every row of ``keep`` is ascending.
        complete: True promises that ``assign`` drops no token.
    """

    keep: Tensor
    assign: Tensor | None = None
    weight: Tensor | None = None
    combine: Literal["mean", "sum"] = "mean"
    mix: Tensor | None = None
    cls_first: Tensor | None = None
    protect: Tensor | None = None
    ragged: bool = True
    ascending: bool = False
    complete: bool = False
    # ``[b, n]`` which tokens survive, where the selection was made of a mask or of the best in their order. The runner, which
    # goes by it, spares ``keep``, worked out when somebody asks, and the look at the device for its width. A changed copy has
    # none.
    _mask: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def all(cls, n: int, *, batch_size: int = 1, device: torch.device | str | None = None,
            protect: Tensor | None = None) -> Selection:  # fmt: skip
        """Keep all ``n`` tokens in their order (and mark ``protect`` ``[b, n]`` among them)."""
        keep = torch.arange(n, device=device).expand(batch_size, n)
        return cls(keep=keep, protect=protect, ragged=False, ascending=True)

    @classmethod
    def top_k(
        cls,
        scores: Tensor,
        k: int | Tensor,
        order: Literal["position", "score"] = "position",
        *,
        valid: Tensor | None = None,
        protected: Tensor | None = None,
        most: int | None = None,
    ) -> Selection:
        """Keep the ``k`` highest scores of each row; among equal scores the lower index wins.

        Args:
            scores: ``[..., n]``.
            k: tokens to keep, one number or one per row (``[b]``, or ``[b, g]`` for scores ``[b, g, n]``).
            order: survivors in ascending position (default) or in descending score.
            valid: ``[..., n]`` False where a token is padding: it is never kept.
            protected: ``[..., n]`` True where a token must be kept: it comes before every other one, and rows that have
                more protected tokens than ``k`` keep them all.
            most: how many a row keeps at most, where that is known, which spares a look at the device: every row is padded to it.
        """
        n = scores.shape[-1]
        # A stable sort makes the lower index win among equals, on every device; topk leaves ties undefined.
        if isinstance(k, int) and protected is None and valid is None:
            first = scores.float().sort(dim=-1, descending=True, stable=True).indices[..., : min(k, n)]
            keep = first.sort(dim=-1).values if order == "position" else first
            return cls(keep=keep, ragged=False, ascending=order == "position")
        scores = scores.float()
        counts = torch.full(scores.shape[:-1], k, device=scores.device) if isinstance(k, int) else k.to(scores.device)
        if protected is not None:
            protected = protected if valid is None else protected & valid
            scores = scores.masked_fill(protected, torch.inf)
            counts = torch.maximum(counts, protected.sum(-1))
        if valid is not None:
            scores = scores.masked_fill(~valid, -torch.inf)
            counts = torch.minimum(counts, valid.sum(-1))
        best = scores.sort(dim=-1, descending=True, stable=True).indices
        return cls._later(_Best(best, counts, most, in_place=order == "position"))

    @classmethod
    def from_mask(cls, mask: Tensor, *, count: int | None = None, most: int | None = None) -> Selection:
        """Keep the tokens where ``mask`` ``[..., n]`` is True, in ascending position; ``count``: how many each row has, or
        ``most``: how many it has at most, where that is known, which spares a look at the device."""
        return cls._later(_Marked(mask, count, most))

    @classmethod
    def _later(cls, chosen: _Best | _Marked) -> Selection:
        """The selection of the chosen tokens, whose indices are worked out when they are asked for."""
        ascending = chosen.in_place
        selection = cls(keep=deferred(chosen.keep), ragged=deferred(chosen.ragged), ascending=ascending)
        if ascending:
            object.__setattr__(selection, "_mask", deferred(chosen.mask))
        return selection

    @classmethod
    def merge(cls, keep: Tensor, assign: Tensor, *, weight: Tensor | None = None, protect: Tensor | None = None,
              combine: Literal["mean", "sum"] = "mean", mix: Tensor | None = None, cls_first: Tensor | None = None,
              ragged: bool = True) -> Selection:  # fmt: skip
        """Merge token ``i`` into slot ``assign[b, i]``; ``keep[b, s]`` names the member under whose index slot ``s`` stands."""
        return cls(keep=keep, assign=assign, weight=weight, combine=combine, mix=mix, cls_first=cls_first,
                   protect=protect, ragged=ragged)  # fmt: skip

    def check(self, n: int, *, batch_size: int | None = None, valid: Tensor | None = None) -> None:
        """Refuse what is not a selection of ``n`` tokens.

        Raises:
            TypeError: ``keep`` or ``assign`` is not an integer tensor.
            ValueError: a wrong shape, an index out of range, a duplicate, padding before a kept token, an empty row, or a
                promise (``ragged``, ``ascending``) that does not hold.
        """
        _integer("keep", self.keep)
        if self.keep.dim() < 2 or (batch_size is not None and self.keep.shape[0] not in (1, batch_size)):
            raise ValueError(f"keep has shape {tuple(self.keep.shape)}, expected [batch={batch_size}, k]")
        _in_range("keep", self.keep, n)
        present = self.keep >= 0
        if not bool(present.any(-1).all()):
            raise ValueError("keep has an empty row: a strategy keeps at least one token of every sample")
        if bool((present[..., 1:] & ~present[..., :-1]).any()):
            raise ValueError("keep has padding (-1) before a kept token: pad at the end of a row")
        _unique(self.keep, n)
        if not self.ragged and not bool(present.all()):
            raise ValueError("ragged=False was promised, but keep holds padding (-1)")
        steps = self.keep[..., 1:] > self.keep[..., :-1]
        if self.ascending and not bool((steps | ~present[..., 1:]).all()):
            raise ValueError("ascending=True was promised, but a row of keep is not ascending")
        if valid is not None and not bool((valid.expand(*self.keep.shape[:-1], -1).gather(-1, self.keep.clamp(min=0))
                                           | ~present).all()):  # fmt: skip
            raise ValueError("keep names padding: use view.valid (Selection.top_k takes it as valid=)")
        self._check_merge(n)

    def _check_merge(self, n: int) -> None:
        if self.protect is not None and self.protect.shape != self.keep.shape:
            raise ValueError(
                f"protect has shape {tuple(self.protect.shape)}, expected that of keep {tuple(self.keep.shape)}"
            )
        if self.assign is None:
            if self.weight is not None or self.mix is not None or self.cls_first is not None:
                raise ValueError("weight, mix or cls_first was given without assign: there is nothing to merge")
            return
        _integer("assign", self.assign)
        if self.assign.shape[-1] != n:
            raise ValueError(f"assign has {self.assign.shape[-1]} columns, expected one per input token: {n}")
        _in_range("assign", self.assign, self.keep.shape[-1])
        if self.weight is not None and self.weight.shape != self.assign.shape:
            raise ValueError(
                f"weight has shape {tuple(self.weight.shape)}, expected that of assign {tuple(self.assign.shape)}"
            )
        if self.mix is not None and (
            self.weight is not None or self.mix.shape[-2:] != (self.keep.shape[-1], n) or self.mix.isnan().any()
        ):
            raise ValueError(
                f"mix has shape {tuple(self.mix.shape)}, expected [..., {self.keep.shape[-1]}, {n}] without NaN and without "
                "a weight beside it"
            )
        slots = torch.arange(self.keep.shape[-1], device=self.keep.device)
        home = self.assign.expand(*self.keep.shape[:-1], -1).gather(-1, self.keep.clamp(min=0))
        at_home = (home == slots) | (self.keep < 0)
        if self.cls_first is not None:
            at_home |= self.cls_first[:, None] & (slots == 0)
        if not bool(at_home.all()):
            raise ValueError("a slot's representative in keep is not assigned to that slot")


class _Marked:
    """The tokens where a mask ``[..., n]`` is True."""

    in_place = True

    def __init__(self, mask: Tensor, count: int | None, most: int | None) -> None:
        self._mask, self._count, self._most = mask, count, most

    @cached_property
    def _counts(self) -> Tensor:
        return self._mask.sum(-1)

    @cached_property
    def _width(self) -> tuple[int, int]:
        if self._count is not None:
            return self._count, self._count
        return _extremes(self._counts) if self._most is None else (-1, min(self._most, self._mask.shape[-1]))

    def keep(self) -> Tensor:
        # Bytes sort on every device: the True ones come first, in their order.
        order = self._mask.view(torch.uint8).sort(dim=-1, descending=True, stable=True).indices
        keep = order[..., : self._width[1]]
        return _cut(keep, self._counts, -1) if self.ragged() else keep

    def ragged(self) -> bool:
        return self._width[0] != self._width[1]

    def mask(self) -> Tensor:
        return self._mask


class _Best:
    """The first ``counts`` ``[...]`` of the indices ``best`` ``[..., n]``; ``in_place``: in ascending position."""

    def __init__(self, best: Tensor, counts: Tensor, most: int | None, *, in_place: bool) -> None:
        self._best, self._counts, self._most, self.in_place = best, counts, most, in_place

    @cached_property
    def _width(self) -> tuple[int, int]:
        return _extremes(self._counts) if self._most is None else (-1, min(self._most, self._best.shape[-1]))

    def keep(self) -> Tensor:
        n, first = self._best.shape[-1], self._best[..., : self._width[1]]
        if not self.in_place:
            return _cut(first, self._counts, -1) if self.ragged() else first
        if not self.ragged():
            return first.sort(dim=-1).values
        keep = _cut(first, self._counts, n).sort(dim=-1).values
        return keep.masked_fill(keep == n, -1)

    def ragged(self) -> bool:
        return self._width[0] != self._width[1]

    def mask(self) -> Tensor:
        kept = torch.arange(self._best.shape[-1], device=self._best.device) < self._counts[..., None]
        return torch.zeros_like(self._best, dtype=torch.bool).scatter(-1, self._best, kept.expand(self._best.shape))


def _cut(index: Tensor, counts: Tensor, filler: int) -> Tensor:
    """``index`` ``[..., k]`` with ``filler`` behind the first ``counts`` ``[...]`` of each row."""
    return index.masked_fill(torch.arange(index.shape[-1], device=index.device) >= counts[..., None], filler)


def _extremes(counts: Tensor) -> tuple[int, int]:
    """Smallest and largest number, in one look at the device; 0 and 0 where there is none."""
    numbers = counts.flatten().tolist() or [0]
    return min(numbers), max(numbers)


def _integer(name: str, value: Tensor) -> None:
    given: object = value
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} is a {type(given).__name__}, expected an integer tensor")
    if value.is_floating_point() or value.dtype == torch.bool:
        raise TypeError(f"{name} is {value.dtype}, expected an integer tensor")


def _in_range(name: str, value: Tensor, end: int) -> None:
    if value.numel() and (int(value.min()) < -1 or int(value.max()) >= end):
        raise ValueError(
            f"{name} holds indices from {int(value.min())} to {int(value.max())}, expected 0..{end - 1} (or -1)"
        )


def _unique(keep: Tensor, n: int) -> None:
    counts = torch.zeros(*keep.shape[:-1], n + 1, dtype=torch.long, device=keep.device)
    counts.scatter_add_(-1, keep.where(keep >= 0, n), torch.ones_like(keep))
    if bool((counts[..., :n] > 1).any()):
        twice = int((counts[..., :n] > 1).nonzero()[0, -1])
        raise ValueError(f"keep names token {twice} twice in one row: every token can survive once")
