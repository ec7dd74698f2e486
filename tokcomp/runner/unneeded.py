"""What stands in for blocks of the vision tower whose output nobody needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tokcomp.models.adapter import TowerBlock

__all__ = ["probe", "skip"]


def skip(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A block after the last one that anybody needs: its output would go nowhere."""
    return hidden_states


def probe(block: TowerBlock) -> Callable[..., Tensor]:
    """A block of which only the attention is wanted, by those who look at it: it hands on what it was given."""

    def forward(hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        block.attend(hidden_states, attention_mask=attention_mask, **kwargs)
        return hidden_states

    return forward
