"""The one value that a strategy returns: which tokens survive, merged how, protected or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Selection"]


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
    ) -> Selection:
        """Keep the ``k`` highest scores of each row; among equal scores the lower index wins.

        Args:
            scores: ``[..., n]``.
            k: tokens to keep, one number or one per row (``[b]``, or ``[b, g]`` for scores ``[b, g, n]``).
            order: survivors in ascending position (default) or in descending score.
            valid: ``[..., n]`` False where a token is padding: it is never kept.
            protected: ``[..., n]`` True where a token must be kept: it comes before every other one, and rows that have
                more protected tokens than ``k`` keep them all.
        """
        scores = scores.float()
        n = scores.shape[-1]
        counts = torch.full(scores.shape[:-1], k, device=scores.device) if isinstance(k, int) else k.to(scores.device)
        if protected is not None:
            protected = protected if valid is None else protected & valid
            scores = scores.masked_fill(protected, torch.inf)
            counts = torch.maximum(counts, protected.sum(-1))
        if valid is not None:
            scores = scores.masked_fill(~valid, -torch.inf)
            counts = torch.minimum(counts, valid.sum(-1))
        uniform = isinstance(k, int) and protected is None and valid is None
        fewest, width = (min(int(k), n),) * 2 if uniform else _extremes(counts)
        # A stable sort makes the lower index win among equals, on every device; topk leaves ties undefined.
        best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :width]
        if fewest == width:
            keep = best.sort(dim=-1).values if order == "position" else best
            return cls(keep=keep, ragged=False, ascending=order == "position")
        beyond = torch.arange(width, device=scores.device) >= counts[..., None]
        if order == "position":
            keep = best.masked_fill(beyond, n).sort(dim=-1).values
            keep = keep.masked_fill(keep == n, -1)
        else:
            keep = best.masked_fill(beyond, -1)
        return cls(keep=keep, ascending=order == "position")

    @classmethod
    def from_mask(cls, mask: Tensor, *, count: int | None = None) -> Selection:
        """Keep the tokens where ``mask`` ``[..., n]`` is True, in ascending position; ``count``: how many each row has,
        where that is known, which spares a look at the device."""
        n = mask.shape[-1]
        fewest, width = _extremes(mask.sum(-1)) if count is None else (count, count)
        index = torch.arange(n, device=mask.device).expand(mask.shape)
        keep = index.masked_fill(~mask, n).sort(dim=-1).values[..., :width]
        return cls(keep=keep.masked_fill(keep == n, -1), ragged=fewest != width, ascending=True)

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


def _extremes(counts: Tensor) -> tuple[int, int]:
    """Smallest and largest number, in one look at the device; 0 and 0 where there is none."""
    if counts.numel() <= 1:
        return (int(counts),) * 2 if counts.numel() else (0, 0)
    smallest, largest = torch.stack(counts.aminmax()).tolist()
    return smallest, largest


def _integer(name: str, value: Tensor) -> None:
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
