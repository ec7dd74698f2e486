"""StreamingLLM: attention sinks and recent entries."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tokcomp.budget import Budget, share_or_number
from tokcomp.ops.recency import first, last
from tokcomp.registry import CACHE
from tokcomp.stages import CachePolicy
from tokcomp.types import CacheView, Selection

__all__ = ["StreamingLLM"]

_RATIO = 0.2


@CACHE.register("streaming_llm")
class StreamingLLM(CachePolicy):
    """Keeps the first few entries, which serve as attention sinks, and the most recent ones.

    "Efficient Streaming Language Models with Attention Sinks", Xiao et al., ICLR 2024, arXiv 2309.17453. Acts after the
    prefill and after every decoding step, with one set for all heads and without looking at any score: the first
    ``sinks`` and the last ``recent`` entries stay, at least one recent one. Entries that must stay by other fields come
    on top. With an image longer than ``recent`` the question survives because it stands at the end.

    The paper numbers entries by their slot in the cache: ``positions="rerotate"``, the default, rotates keys there.
    Ports of the method leave keys and positions as they are: ``"keep"``.

    Departures: the paper gives the cache an absolute size (4 + 1020 or 4 + 2044 entries), beyond most prompts with one
    image, so the default here is a share of the prompt.

    Attributes:
        sinks: first entries that stay.
        keep_ratio: entries that stay, sinks included, as share of the prompt's length before compression. The default
            gives way where ``recent_tokens`` is given.
        recent_tokens: last entries that stay.
    """

    acts_in_decoding: ClassVar[bool] = True
    layers_alike: ClassVar[bool] = True
    paper: ClassVar[str] = "StreamingLLM, ICLR 2024, arXiv 2309.17453"

    sinks: int = Field(default=4, ge=0, description="first entries that stay")
    keep_ratio: float | None = Field(
        default=_RATIO, gt=0, le=1, description="entries that stay, sinks included, as share of the prompt"
    )
    recent_tokens: int | None = Field(default=None, ge=1, description="last entries that stay")
    positions: Literal["keep", "renumber", "rerotate"] = Field(
        default="rerotate", description="position of a new token: its true one, or its slot in the cache"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_size(cls, fields: Any) -> Any:
        return share_or_number(fields, "keep_ratio", "recent_tokens", _RATIO)

    def departures(self) -> dict[str, str]:
        return {"budget": "the sinks and one recent entry stay, however small the share is"}

    def after_prefill(self, view: CacheView) -> Selection | None:
        return self._select(view)

    def after_step(self, view: CacheView) -> Selection | None:
        return self._select(view, step=True)

    def _select(self, view: CacheView, *, step: bool = False) -> Selection | None:
        if not view.padded and self.exempt(view) is None and (self.recent_tokens or view.prompt_tokens) is not None:
            return self._of_equal_rows(view)
        recent: int | Tensor
        if self.recent_tokens is not None:
            recent = self.recent_tokens
            if view.n_entries <= self.sinks + recent:
                return None
        else:
            recent = (Budget(keep_ratio=self.keep_ratio).resolve(view.prompt) - self.sinks).clamp(min=1)  # (b,)
        valid = view.valid[:, 0]  # (b, l): the rule never tells the heads apart
        keep = first(valid, self.sinks) | last(valid, recent)
        exempt = self.exempt(view)
        keep = keep if exempt is None else keep | (exempt[:, 0] & valid)
        return Selection.from_mask(keep, most=self._most(view) if step and view.padded else None)

    def _most(self, view: CacheView) -> int | None:
        """How many entries a row keeps at most; None where that grows with the answer."""
        if self.keep_text:
            return None
        recent = self.recent_tokens
        if recent is None:
            recent = max(Budget(keep_ratio=self.keep_ratio).resolve(view.longest_prompt) - self.sinks, 1)
        return self.sinks + recent + (view.most_protected if self.respects_protected and view.marked else 0)

    def _of_equal_rows(self, view: CacheView) -> Selection | None:
        """The same where it needs no look at the device."""
        recent, n = self.recent_tokens, view.n_entries
        if recent is None:
            assert view.prompt_tokens is not None
            recent = max(Budget(keep_ratio=self.keep_ratio).resolve(view.prompt_tokens) - self.sinks, 1)
        if n <= self.sinks + recent:
            return None
        keep = torch.arange(self.sinks + recent, device=view.device)
        keep[self.sinks :] += n - self.sinks - recent
        return Selection(keep=keep.expand(view.batch_size, -1), ragged=False, ascending=True)
