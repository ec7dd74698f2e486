"""What a cache policy gets to see of a layer's attention, computed while the layer runs and only if the policy asks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokcomp.ops.received import received_sums
from tokcomp.ops.recency import last
from tokcomp.ops.scores import attention_rows, column_sums
from tokcomp.runner.masks import over_heads
from tokcomp.runner.passes import Pass
from tokcomp.stages import CachePolicy

__all__ = ["received_attention"]


def received_attention(run: Pass, policy: CachePolicy, query: Tensor, key: Tensor, scale: float,
                       **logits: Any) -> Tensor | None:  # fmt: skip
    """What each entry receives in this pass, summed over its rows and the query heads of its group ``[b, g, l]``; None in
    a later pass of a policy that does not act there."""
    if run.prefill and run.sequence is not None:
        rows, row_valid = _prompt_rows(run, policy)
        if run.sees.window is not None or run.sees.blocks is not None or logits:
            return received_sums(query, key, scale=scale, sees=run.sees.rows, row_valid=row_valid, rows=rows, **logits)
        return column_sums(query, key, scale=scale, causal=True, key_valid=run.sequence.valid, row_valid=row_valid,
                           rows=rows)  # fmt: skip
    if not policy.decodes():
        return None
    b, heads, rows_now, _ = query.shape
    mask = over_heads(run.sees.last(rows_now, query.device), heads)
    attention = attention_rows(query, key, scale=scale, mask=mask, **logits)
    return attention.view(b, key.shape[1], -1, key.shape[2]).sum(dim=2)


def _prompt_rows(run: Pass, policy: CachePolicy) -> tuple[int | None, Tensor | None]:
    """How many of the last rows a policy wants, of the sample with most, and which rows those are ``[b, l]`` (None: the
    last of every sample). Layers with the same tokens share the answer, which costs a look at the device."""
    sequence = run.sequence
    assert sequence is not None
    memo, name = run.memo, ("rows", id(policy), id(sequence))
    if name not in memo:
        counts = run.counts()
        wanted = policy.prefill_rows(counts, run.request.prompt.after)
        if wanted is None:
            memo[name] = None, sequence.valid
        else:
            wanted = torch.minimum(wanted, counts).clamp(min=1)
            fewest, most = torch.stack(wanted.aminmax()).tolist()
            real = torch.ones_like(sequence.index, dtype=torch.bool) if sequence.valid is None else sequence.valid
            memo[name] = most, sequence.valid if fewest == most else last(real, wanted)
    return memo[name]
