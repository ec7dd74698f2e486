"""An independent way to the same numbers: nothing is removed, each layer of the untouched model runs on the full sequence
with a mask (and positions) that a loop wrote down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def visible(length: int, window: int | None, *, blocks: Tensor | None = None, through: bool = False) -> Tensor:
    """Which key (column) each query (row) may see ``[l, l]``, token by token."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    for q in range(length):
        for k in range(length):
            same = blocks is not None and int(blocks[q]) >= 0 and blocks[q] == blocks[k]
            near = window is None or q - k < window
            mask[q, k] = ((k <= q and near) or same) if through else ((k <= q or same) and near)
    return mask


def run_masked(model: Any, decoder: Any, inputs: dict[str, Any], masks: Sequence[Tensor],
               positions: Sequence[Tensor] | None = None) -> Tensor:  # fmt: skip
    """Logits ``[l, v]`` of one sample when layer i attends by ``masks[i]`` (``[l, l]`` or ``[h, l, l]``) and, where given,
    rotates by ``positions[i]`` ``[l]``."""
    handles = []
    for number, layer in enumerate(decoder.layers):

        def before(module: Any, args: Any, kwargs: dict[str, Any], number: int = number) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            mask = masks[number] | torch.eye(hidden.shape[1], dtype=torch.bool)  # rows of dropped tokens see themselves
            mask = mask[None, None] if mask.dim() == 2 else mask[None]
            if (decoder.config._attn_implementation or "eager") == "eager":
                mask = torch.zeros(mask.shape, dtype=hidden.dtype).masked_fill(~mask, torch.finfo(hidden.dtype).min)
            kwargs["attention_mask"] = mask
            if positions is not None:
                kwargs["position_embeddings"] = decoder.rotary(hidden, positions[number][None], number)
            return args, kwargs

        handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
    try:
        with torch.no_grad():
            logits: Tensor = model(**inputs, use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return logits
