"""H2O: heavy hitters and recent entries."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tokcomp.ops.recency import last
from tokcomp.registry import CACHE
from tokcomp.stages import CachePolicy
from tokcomp.types import CacheView, Selection, Signal

__all__ = ["H2O"]

_RATIO = 0.1


@CACHE.register("h2o")
class H2O(CachePolicy):
    """Keeps the entries that have received most attention so far and the most recent ones, per KV head.

    "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models", Zhang et al., NeurIPS 2023,
    arXiv 2306.14048. Acts after the prefill and after every decoding step, once the step's attention is computed.

    The score of an entry is the attention that it received from every row since it exists (no division by the number of
    rows that saw it), summed over the query heads of its KV group; an evicted entry's score is gone. When a head holds
    more than heavy + recent entries, the last ``recent`` stay, and of the others the ``heavy`` largest scores (among
    equals the earlier entry), in their order. Entries that must stay count inside ``heavy`` first.

    ``eviction="mask"`` is the authors' simulation: nothing leaves the cache, but entries outside the selection are
    hidden from the next step. It reserves one of the recent slots for the coming token and still excludes all of them
    from the heavy candidates, so the oldest recent entry is dark for one step (neither recent nor candidate) and the
    step attends to exactly heavy + recent keys; with "drop" it is one more. A hidden entry receives nothing, so its
    score stands still. The simulation starts when the next step would exceed the budget.

    ``positions="rerotate"`` is the authors' streaming variant: keys are rotated to their slots in the cache.

    Departures from the authors' code, which knows one sample and no grouped heads: every sample has its own scores and
    budget; scores are float32 throughout; ``recent`` is at least 1.

    Attributes:
        heavy_ratio, recent_ratio: shares of the prompt's length before compression, truncated (the authors' demo). The
            defaults give way where the numbers of tokens are given.
        heavy_tokens, recent_tokens: entries, given together.
        eviction: entries that are not selected leave ("drop") or are hidden from the next step ("mask").
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.RECEIVED_ATTENTION})
    acts_in_decoding: ClassVar[bool] = True
    layers_alike: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    paper: ClassVar[str] = "H2O, NeurIPS 2023, arXiv 2306.14048"

    heavy_ratio: float | None = Field(default=_RATIO, ge=0, le=1, description="heavy hitters, as share of the prompt")
    recent_ratio: float | None = Field(default=_RATIO, ge=0, le=1, description="recent entries, as share of the prompt")
    heavy_tokens: int | None = Field(default=None, ge=0, description="heavy hitters, as number of entries")
    recent_tokens: int | None = Field(default=None, ge=1, description="recent entries, as number of entries")
    eviction: Literal["drop", "mask"] = Field(default="drop", description="evict, or hide from the next step only")
    positions: Literal["keep", "rerotate"] = Field(
        default="keep", description="keys keep their position, or are rotated to their slot in the cache"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_kind_of_budget(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        tokens = [name for name in ("heavy_tokens", "recent_tokens") if fields.get(name) is not None]
        ratios = [name for name in ("heavy_ratio", "recent_ratio") if fields.get(name) is not None]
        if tokens and ratios:
            raise ValueError(f"give {' and '.join(ratios)} or {' and '.join(tokens)}, not both: set the others to null")
        if len(tokens) == 1:
            raise ValueError(f"{tokens[0]} was given alone: give heavy_tokens and recent_tokens together")
        if tokens:
            return {**fields, "heavy_ratio": None, "recent_ratio": None}
        defaults = {name: _RATIO for name in ("heavy_ratio", "recent_ratio") if name not in ratios}
        return {**fields, **defaults}

    @model_validator(mode="after")
    def _masked_keys_stay(self) -> H2O:
        if self.eviction == "mask" and self.positions == "rerotate":
            raise ValueError('eviction="mask" leaves every key in its slot: give positions="keep", or eviction="drop"')
        return self

    def hides(self) -> bool:
        return self.eviction == "mask"

    def after_prefill(self, view: CacheView) -> Selection | None:
        return self._select(view)

    def after_step(self, view: CacheView) -> Selection | None:
        return self._select(view, step=True)

    def _select(self, view: CacheView, *, step: bool = False) -> Selection | None:
        before = view.memory.get("sums")
        sums = view.received if before is None else before + view.received  # (b, g, l)
        view.memory["sums"] = sums
        known = self._known_budgets(view)
        if known is not None:
            return self._kept_of_equal_rows(view, sums, *known)
        if view.n_entries <= (self.heavy_tokens or 0) + (self.recent_tokens or 0) - self.hides():
            return None  # known without asking the device; shares of the prompt never get here
        heavy, recent = self._budgets(view)
        if self.hides():
            return self._shown(view, sums, heavy, recent)
        return self._kept(view, sums, heavy, recent, self._most(view) if step and view.padded else None)

    def _known_budgets(self, view: CacheView) -> tuple[int, int] | None:
        """Heavy and recent entries, where they are the same in every row and nothing has to be asked of the device."""
        if self.hides() or view.padded or view.prompt_tokens is None or self.keep_text:
            return None
        heavy, recent = self._of(view.prompt_tokens)
        crowded = self.respects_protected and view.marked and view.most_protected > heavy
        return None if crowded else (heavy, recent)

    def _of(self, prompt_tokens: int) -> tuple[int, int]:
        """Heavy and recent entries of a prompt of this length."""
        heavy = (
            self.heavy_tokens if self.heavy_tokens is not None else int(prompt_tokens * float(self.heavy_ratio or 0))
        )
        recent = (
            self.recent_tokens if self.recent_tokens is not None else int(prompt_tokens * float(self.recent_ratio or 0))
        )
        return heavy, max(recent, 1)

    def _most(self, view: CacheView) -> int | None:
        """How many entries a row keeps at most; None where that grows with the answer."""
        if self.keep_text:
            return None
        heavy, recent = self._of(view.longest_prompt)
        return recent + max(heavy, view.most_protected if self.respects_protected and view.marked else 0)

    def _kept_of_equal_rows(self, view: CacheView, sums: Tensor, heavy: int, recent: int) -> Selection | None:
        if view.n_entries <= heavy + recent:
            return None
        sums, exempt = sums.clone(), self.exempt(view)
        sums[..., -recent:] = torch.inf
        if exempt is not None:
            sums = sums.masked_fill(exempt, torch.inf)
        return Selection.top_k(sums, heavy + recent)

    def _budgets(self, view: CacheView) -> tuple[Tensor, Tensor]:
        """Heavy and recent entries of each sample and head, ``[b, g]`` each."""

        def resolve(tokens: int | None, ratio: float | None) -> Tensor:
            if tokens is not None:
                return torch.full_like(view.counts, tokens)
            return (view.prompt.double() * float(ratio or 0)).long()[:, None].expand_as(view.counts)

        recent = resolve(self.recent_tokens, self.recent_ratio).clamp(min=1)
        return resolve(self.heavy_tokens, self.heavy_ratio), recent

    def _kept(self, view: CacheView, sums: Tensor, heavy: Tensor, recent: Tensor, most: int | None) -> Selection:
        stay = last(view.valid, recent)
        exempt = self.exempt(view)
        stay = stay if exempt is None else stay | exempt
        return Selection.top_k(sums, heavy + recent, valid=view.valid, protected=stay, most=most)

    def _shown(self, view: CacheView, sums: Tensor, heavy: Tensor, recent: Tensor) -> Selection:
        full = view.counts >= (heavy + recent).clamp(min=2)
        shown = last(view.valid, recent - 1)
        dark = last(view.valid, recent) & ~shown & full[..., None]
        exempt = self.exempt(view)
        shown = shown if exempt is None else shown | exempt
        visible = (heavy + recent - 1).clamp(min=1).where(full, view.counts)
        return Selection.top_k(sums, visible, valid=view.valid & (shown | ~dark), protected=shown)
