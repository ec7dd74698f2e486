"""What a cache policy gets to see of a layer's attention, computed while the layer runs and only if the policy asks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokcomp.ops.received import received_sums
from tokcomp.ops.recency import last
from tokcomp.ops.rotary import unrotate
from tokcomp.ops.scores import attention_rows, column_sums
from tokcomp.runner.extra import from_decoder
from tokcomp.runner.masks import Visibility, over_heads
from tokcomp.runner.passes import Observed, Pass
from tokcomp.stages import CachePolicy
from tokcomp.types import Signal

__all__ = ["OBSERVED", "observe", "prompt_rows", "sums_prompt"]

OBSERVED = frozenset({Signal.RECEIVED_ATTENTION, Signal.ATTENTION_ROWS, Signal.QUERIES})
"""The signals for which a layer's attention has to be looked at."""

_CHUNK_BYTES = 8 * 2**20


def sums_prompt(policy: CachePolicy) -> bool:
    """Whether a policy looks at the attention that each key receives from a prompt's rows."""
    needs = policy.signals()
    return Signal.RECEIVED_ATTENTION in needs and Signal.ATTENTION_ROWS not in needs


def observe(run: Pass, policy: CachePolicy, query: Tensor, key: Tensor, scale: float, *, layer: int,
            interleaved: bool, **logits: Any) -> Observed:  # fmt: skip
    """What ``policy`` asks to see of the attention that is about to run: ``query`` ``[b, h, t, d]`` over ``key``
    ``[b, g, l, d]``."""
    needs = policy.signals()
    received, rows, queries = None, None, None
    extra = from_decoder(needs, "cache", query, key, scale, run.sees, layer=layer, **logits)
    if sums_prompt(policy) if run.prefill else Signal.RECEIVED_ATTENTION in needs:
        received = _received(run, policy, query, key, scale, **logits)
    if not run.prefill:
        return Observed(received, extra=extra)
    if Signal.ATTENTION_ROWS in needs:
        rows = partial(_chunks, run, policy, query, key, scale, run.sees, **logits)
    if Signal.QUERIES in needs:
        queries = query.float() if run.rotary is None else unrotate(query, *run.rotary, interleaved=interleaved)
    return Observed(received, rows, queries, extra=extra)


def _received(run: Pass, policy: CachePolicy, query: Tensor, key: Tensor, scale: float,
              **logits: Any) -> Tensor | None:  # fmt: skip
    """What each entry receives in this pass, summed over its rows and the query heads of its group ``[b, g, l]``; None in
    a later pass of a policy that does not act there."""
    if run.received is not None:  # it came with the layer's output
        received, run.received = run.received, None
        return received
    b, heads, rows_now, _ = query.shape
    if run.prefill and run.sequence is not None:
        rows, row_valid = prompt_rows(run, policy)
        sees = run.sees
        if sees.window is not None or sees.blocks is not None or logits:
            return received_sums(query, key, scale=scale, sees=lambda at: over_heads(sees.rows(at), heads),
                                 row_valid=row_valid, rows=rows, **logits)  # fmt: skip
        return column_sums(query, key, scale=scale, causal=True, key_valid=sees.valid, row_valid=row_valid, rows=rows)
    if not policy.decodes():
        return None
    mask = over_heads(run.sees.last(rows_now, query.device), heads)
    attention = attention_rows(query, key, scale=scale, mask=mask, **logits)
    if run.follow.valid is not None:
        attention = attention * run.follow.valid[:, None, :, None]
    return attention.view(b, key.shape[1], -1, key.shape[2]).sum(dim=2)


def _chunks(run: Pass, policy: CachePolicy, query: Tensor, key: Tensor, scale: float, sees: Visibility,
            **logits: Any) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """The rows that a policy asked for, as many at a time as fit into the room there is."""
    most, valid = prompt_rows(run, policy)
    (b, h, t, _), length = query.shape, key.shape[2]
    height = max(1, _CHUNK_BYTES // (4 * b * h * length))
    before = length - t
    for start in range(t - (t if most is None else most), t, height):
        at = torch.arange(start, min(start + height, t), device=query.device)
        mask = over_heads(sees.rows(before + at), h)
        attention = attention_rows(query[:, :, at], key, scale=scale, mask=mask, **logits)
        yield attention, torch.ones_like(at, dtype=torch.bool).expand(b, -1) if valid is None else valid[:, at]


def prompt_rows(run: Pass, policy: CachePolicy) -> tuple[int | None, Tensor | None]:
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
