"""Interval: another policy, every n decoding steps."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field, field_validator

from tokcomp.cache.wrapper import Wrapper
from tokcomp.registry import CACHE
from tokcomp.scored import ScoredPolicy
from tokcomp.specs import CacheSpec
from tokcomp.stages import CachePolicy
from tokcomp.types import CacheView, Selection, Signal

__all__ = ["Interval"]


@CACHE.register("interval")
class Interval(Wrapper):
    """Lets another policy shorten the cache every few generated tokens, to the same number of entries each time.

    As a published library of policies applies its policies in decoding. The prompt stays whole until the first event
    (unless ``prefill``). After every ``every`` generated tokens the whole cache, prompt and answer, goes to ``base``, which keeps
    its ``keep_tokens``; the length then swings between that and ``every`` more. A base that looks at attention sees that of the
    tokens generated since the last event, as many of them as it wants: with ``snapkv`` these are the observation window. With
    ``tova`` and ``every: 1`` it is TOVA itself.

    Attributes:
        base: a policy that keeps ``keep_tokens`` entries by their scores, or one that acts in decoding and remembers nothing.
        every: generated tokens from one event to the next.
        prefill: whether the base acts after the prefill, too.
    """

    acts_in_decoding: ClassVar[bool] = True
    counts_tokens: ClassVar[bool] = True

    base: CacheSpec = Field(
        default="tova", validate_default=True, description="the policy that is asked, with its fields"
    )
    every: int = Field(default=32, ge=1, description="generated tokens from one event to the next")
    prefill: bool = Field(default=False, description="whether the base acts after the prefill, too")

    @field_validator("base")
    @classmethod
    def _can_act_again(cls, base: CachePolicy) -> CachePolicy:
        scored = isinstance(base, ScoredPolicy)
        if base.packs() or base.remembers or not (scored or base.decodes()):
            raise ValueError(
                f"'{base.name}' cannot act again and again: take one that scores entries (snapkv, knorm, keydiff...) or tova"
            )
        if {Signal.QUERIES, Signal.ATTENTION_ROWS, Signal.SURVEY} & base.signals():
            raise ValueError(
                f"'{base.name}' looks at the prompt's queries, which decoding does not have: take another base"
            )
        if scored and getattr(base, "keep_tokens", None) is None:
            raise ValueError(f"'{base.name}' has to say how many entries each event leaves: give base.keep_tokens")
        return base

    def decodes(self) -> bool:
        return True

    def after_prefill(self, view: CacheView) -> Selection | None:
        return self.base.after_prefill(view) if self.prefill else None

    def after_step(self, view: CacheView) -> Selection | None:
        before = view.generated - view.n_queries
        if Signal.RECEIVED_ATTENTION in self.base.signals():
            self._sum_up(view, before)
        if view.generated // self.every == before // self.every:
            return None
        if not isinstance(self.base, ScoredPolicy):
            return self.base.after_step(view)
        limit = self.base.keep_tokens
        if limit is not None and view.n_entries <= limit:
            return None
        received = view.memory.get("received")
        rows = torch.full_like(view.after, min(self.every, view.generated))
        return self.base.after_prefill(replace(view, after=rows, _received=received))

    def _sum_up(self, view: CacheView, before: int) -> None:
        """Add this pass's rows, if they are among those that the base wants to see at the next event."""
        every = torch.tensor([self.every])
        wanted = self.base.prefill_rows(every + view.n_entries, every)
        first = before // self.every * self.every  # tokens before the running interval
        sums = view.memory.get("received")
        if sums is None or before == first:
            sums = torch.zeros_like(view.received)
        if wanted is None or view.generated - first > self.every - int(wanted):
            sums = sums + view.received
        view.memory["received"] = sums
