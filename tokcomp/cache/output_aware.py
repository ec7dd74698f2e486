"""Output-aware eviction of vision entries: what the generated tokens look at decides."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tokcomp.budget import Budget, share_or_number
from tokcomp.registry import CACHE
from tokcomp.stages import CachePolicy
from tokcomp.types import CacheView, Selection, Signal

__all__ = ["OutputAware"]

_RATIO = 0.25


@CACHE.register("output_aware")
class OutputAware(CachePolicy):
    """Lets vision entries leave the cache while the answer is generated, by what the tokens generated so far attend to.

    This package's own method, not a published one. Text entries and the vision stage's key tokens never leave. State per
    layer: a score per vision entry, shared by all heads. It starts as ``prior`` times the mean of what the last ``observed``
    prompt rows behind the image give. With every generated token it fades by ``decay`` and gains the token's
    attention row over the whole cache (raw mass: a token that does not look at the image says little about it), reduced by
    the mean over each group's query heads and the maximum over KV heads, since few heads look at the image. Scores are
    divided by their total weight ``prior decay^t + sum decay^i``, ``[b, l]``.

    After token t, from ``start`` on and then every ``every`` tokens, once its attention is computed, the lowest scores leave
    (among equals the later entry): in mode ``budget`` as many as exceed K(t), which falls from the vision entries that the
    prefill left to ``final_ratio`` of them within ``over`` tokens; in mode ``threshold`` those below ``threshold`` times an
    even share of the scores' sum, no more than ``most`` of what is there per event and never below ``final``.

    An answer shorter than ``start`` is generated with the full cache. Eviction is final: a later question about another
    part of the image finds what the earlier answer left.

    Attributes:
        mode: fixed schedule, or a threshold on the scores.
        final_ratio: vision entries that are left in the end, as share of those that the prefill left. The default gives
            way where ``final_tokens`` is given. In mode ``threshold`` the fewest that may be left.
        final_tokens: or their number.
        start: first token after which entries leave; ``every``: tokens from one event to the next; ``over``: tokens that the
            budget takes to fall, 0: at once.
        decay: what is left of a score after one more token; 1: all of it.
        prior: weight of the prompt's attention, in tokens; ``observed``: prompt rows that it is a mean of, at most.
        reduce: over the KV heads: their largest value, or their mean.
        threshold, most: of mode ``threshold``.
        keep_text: always true.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.RECEIVED_ATTENTION, Signal.ATTENTION_ROWS})
    acts_in_decoding: ClassVar[bool] = True
    layers_alike: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    counts_tokens: ClassVar[bool] = True

    mode: Literal["budget", "threshold"] = Field(
        default="budget", description="fixed schedule, or a threshold on scores"
    )
    final_ratio: float | None = Field(
        default=_RATIO, gt=0, le=1, description="vision entries left in the end, as share"
    )
    final_tokens: int | None = Field(default=None, ge=1, description="vision entries left in the end, as number")
    start: int = Field(default=16, ge=1, description="first generated token after which entries leave")
    every: int = Field(default=16, ge=1, description="generated tokens from one event to the next")
    over: int = Field(default=0, ge=0, description="generated tokens that the budget takes to fall")
    decay: float = Field(default=0.98, gt=0, le=1, description="what is left of a score after one more token")
    prior: float = Field(default=4.0, ge=0, description="weight of the prompt's attention, in tokens")
    observed: int = Field(default=32, ge=1, description="prompt rows behind the image that make the prior, at most")
    reduce: Literal["max", "mean"] = Field(default="max", description="over the key/value heads")
    threshold: float = Field(default=0.3, ge=0, description="share of an even share below which an entry leaves")
    most: float = Field(default=0.25, gt=0, le=1, description="largest share of the vision entries that leaves at once")
    keep_text: Literal[True] = Field(default=True, description="entries of text tokens stay, by the rule")

    @model_validator(mode="before")
    @classmethod
    def _one_end(cls, fields: Any) -> Any:
        return share_or_number(fields, "final_ratio", "final_tokens", _RATIO)

    def prefill_rows(self, counts: Tensor, after: Tensor) -> Tensor:
        return counts.minimum(after).clamp(min=1, max=self.observed)

    def after_prefill(self, view: CacheView) -> None:
        sums, rows = torch.zeros_like(view.valid[:, 0], dtype=torch.float32), torch.zeros_like(view.after)
        for attention, real in view.attention_rows:  # (b, h, t, l), (b, t)
            grouped = attention.unflatten(1, (view.keys.shape[1], -1)).mean(dim=2)  # (b, g, t, l)
            sums += (self._over_heads(grouped) * real[..., None]).sum(dim=1)
            rows = rows + real.sum(dim=1)
        mean = sums.masked_fill(~view.vision[:, 0], 0.0) / rows[:, None].clamp(min=1)
        view.memory["mass"] = self._spread(self.prior * mean, view)

    def after_step(self, view: CacheView) -> Selection | None:
        fresh = view.n_queries
        mass = view.memory["mass"][:, 0] * self.decay**fresh + self._reduced(view)  # (b, l)
        view.memory["mass"] = self._spread(mass, view)
        events = [t for t in range(view.generated - fresh + 1, view.generated + 1) if self._acts_after(t)]
        if not events:
            return None
        vision = view.vision[:, 0]
        present = vision.sum(dim=-1)
        exempt = self.exempt(view)
        assert exempt is not None
        stays = exempt[:, 0] & view.valid[:, 0]
        left = self._scheduled(view, present, events[-1]) if self.mode == "budget" else self._above(view, mass, stays)
        text = (view.valid[:, 0] & ~vision).sum(dim=-1)
        return Selection.top_k(mass, text + left, valid=view.valid[:, 0], protected=stays)

    def scores(self, mass: Tensor, generated: int) -> Tensor:
        """The mass divided by its total weight after ``generated`` tokens."""
        seen = generated if self.decay == 1 else (1 - self.decay**generated) / (1 - self.decay)
        return mass / max(self.prior * self.decay**generated + seen, torch.finfo(mass.dtype).tiny)

    def _acts_after(self, token: int) -> bool:
        return token >= self.start and (token - self.start) % self.every == 0

    def _reduced(self, view: CacheView) -> Tensor:
        """Attention over the vision entries ``[b, l]``, one number for all heads; 0 elsewhere."""
        return self._over_heads(view.received / view.group).masked_fill(~view.vision[:, 0], 0.0)

    def _over_heads(self, attention: Tensor) -> Tensor:
        return attention.amax(dim=1) if self.reduce == "max" else attention.mean(dim=1)

    @staticmethod
    def _spread(mass: Tensor, view: CacheView) -> Tensor:
        return mass[:, None].expand_as(view.valid).contiguous()

    def _end(self, view: CacheView) -> Tensor:
        return Budget(keep_ratio=self.final_ratio, keep_tokens=self.final_tokens).resolve(view.initial)

    def _scheduled(self, view: CacheView, present: Tensor, token: int) -> Tensor:
        """Vision entries that are left after ``token`` ``[b]``."""
        fallen = 1.0 if self.over == 0 else min(max((token - self.start) / self.over, 0.0), 1.0)
        budget = (view.initial + (self._end(view) - view.initial).double() * fallen).round().long()
        return budget.minimum(present)

    def _above(self, view: CacheView, mass: Tensor, stays: Tensor) -> Tensor:
        """Vision entries that are left where those below the threshold leave ``[b]``. Mass and score differ by one factor."""
        vision = view.vision[:, 0]
        present = vision.sum(dim=-1)
        even = mass.sum(dim=-1, keepdim=True) / view.initial[:, None].clamp(min=1)
        low = (vision & ~stays & (mass < self.threshold * even)).sum(dim=-1)
        leaving = low.minimum((present.double() * self.most).long()).minimum((present - self._end(view)).clamp(min=0))
        return present - leaving
