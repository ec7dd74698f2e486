"""How much is kept: the one rounding rule of the package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, overload

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

__all__ = ["Budget", "Budgeted", "SharedBudget", "refuse_table", "share_or_number"]


class Budget(BaseModel):
    """How many tokens are *kept*, as a share or as a number; exactly one of the two is given.

    Papers state it in many ways (FastV's R is the share that is dropped); here a budget is always what is kept, and a
    paper's own symbol stands in the docstring of its strategy only.

    Attributes:
        keep_ratio: share of the tokens that is kept, above 0 and at most 1.
        keep_tokens: number of tokens that is kept, at least 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep_ratio: float | None = Field(default=None, gt=0, le=1)
    keep_tokens: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _exactly_one(self) -> Budget:
        if (self.keep_ratio is None) == (self.keep_tokens is None):
            given = "neither" if self.keep_ratio is None else "both"
            raise ValueError(f"give keep_ratio or keep_tokens, exactly one of them ({given} given)")
        return self

    @overload
    def resolve(self, n: int) -> int: ...
    @overload
    def resolve(self, n: Tensor) -> Tensor: ...
    def resolve(self, n: int | Tensor) -> int | Tensor:
        """The number kept of ``n`` tokens: a share is rounded half to even (as FastV's code does), and the result is
        never below 1 nor above ``n``. A tensor of counts gives a tensor of counts."""
        if isinstance(n, Tensor):
            wanted = (
                torch.full_like(n, self.keep_tokens)
                if self.keep_tokens is not None
                else (n.double() * float(self.keep_ratio or 0)).round().to(n.dtype)
            )
            return torch.minimum(wanted.clamp(min=1), n)
        share = self.keep_tokens if self.keep_tokens is not None else round(n * float(self.keep_ratio or 0))
        return min(max(share, 1), n)


class Budgeted(BaseModel):
    """The flat budget fields of a strategy: a share whose default gives way where a number is given.

    Attributes:
        keep_ratio: share of the tokens that is kept. A strategy with another default declares the field again.
        keep_tokens: number of tokens that is kept.
    """

    keep_ratio: float | None = Field(default=0.25, gt=0, le=1, description="share of the tokens that is kept")
    keep_tokens: int | None = Field(default=None, ge=1, description="number of tokens that is kept")

    @model_validator(mode="before")
    @classmethod
    def _one_budget(cls, fields: Any) -> Any:
        return share_or_number(fields, "keep_ratio", "keep_tokens", cls.model_fields["keep_ratio"].default)

    @property
    def budget(self) -> Budget:
        """The two fields as one value."""
        return Budget(keep_ratio=self.keep_ratio, keep_tokens=self.keep_tokens)


class SharedBudget(Budgeted):
    """The budget fields of a vision reducer that drops tokens and merges none, so that several rows of the tower can share a
    budget.

    Attributes:
        budget_per: what the reducer decides on by itself, and has a budget of its own: each row of the vision tower (an image,
            a tile of a large one, a frame of a video), each image or video with all its tiles or frames, or all images of a
            prompt that are encoded together (images and videos apart). Rows that share a budget are laid end to end; what
            compares tokens (attention) is taken as the tower gives it, row by row.
    """

    budget_per: Literal["row", "image", "prompt"] = Field(
        default="row", description="what has a budget of its own: a tile or frame, an image or video, a prompt's images"
    )

    def scope(self) -> Literal["row", "image", "prompt"]:
        return self.budget_per


def share_or_number(fields: Any, share: str, number: str, default: float | None) -> Any:
    """Raw fields of which one states a share and another a number: ``default`` is the share where neither is given.

    None counts as not given.

    Raises:
        ValueError: both are given.
    """
    if not isinstance(fields, dict):
        return fields
    ratio, tokens = fields.get(share), fields.get(number)
    if ratio is not None and tokens is not None:
        raise ValueError(f"give {share} ({ratio}) or {number} ({tokens}), not both: set the other one to null")
    return {**fields, share: default if ratio is None and tokens is None else ratio}


def refuse_table(name: str, table: Sequence[float] | None, layers: int, *, most: float = math.inf) -> None:
    """Check a budget that is given layer by layer.

    Args:
        name: the field, for messages.
        table: how much is kept at each of the strategy's layers, or None.
        layers: how many layers there are.
        most: the largest number that makes sense, 1 for shares.

    Raises:
        ValueError: another number of entries than layers, an entry out of range, or one that is larger than the one before
            it, which no earlier layer leaves tokens for.
    """
    if table is None:
        return
    if len(table) != layers:
        raise ValueError(f"{name} has {len(table)} entries for {layers} layers: give one per layer")
    if min(table) <= 0 or max(table) > most:
        raise ValueError(
            f"{name}={list(table)} must hold numbers above 0{'' if most == math.inf else f', at most {most:g}'}"
        )
    if any(after > before for before, after in pairwise(table)):
        raise ValueError(f"{name}={list(table)} must not rise: a later layer has only what an earlier one left")
