"""Attention calls that the runner answers itself: over packed entries, and where a cache policy wants the attention that
each key receives of all rows of a prompt, which comes with the output in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokcomp.models.adapter import Decoder
from tokcomp.ops.attended import attention_and_sums
from tokcomp.ops.precision import autocast_is_on
from tokcomp.runner.eviction import Evictor
from tokcomp.runner.hooks import Attender, base_implementation
from tokcomp.runner.masks import Visibility, over_heads
from tokcomp.runner.observing import prompt_rows, sums_prompt
from tokcomp.runner.packing import attend_packed
from tokcomp.runner.passes import Pass
from tokcomp.stages import CachePolicy

__all__ = ["answered_layers", "attender"]

_DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})
_UNDERSTOOD = frozenset({"attention_mask", "position_ids", "cache_position", "position_embeddings"})
"""Tensors among an attention call's options that the pass answers for; any other one changes the attention."""


def answered_layers(evictor: Evictor) -> dict[int, CachePolicy]:
    """The layers whose calls may be answered, with their policies."""
    return {
        number: policy
        for number, policy in evictor.policies.items()
        if number in evictor.packing or sums_prompt(policy)
    }


def attender(current: Callable[[], Pass | None], decoder: Decoder, policy: CachePolicy, number: int) -> Attender:
    """What answers the attention calls of layer ``number``, where it can."""
    module = decoder.attentions[number]

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, options: dict[str, Any]) -> Tensor | None:
        run = current()
        if run is None:
            return None
        if not run.prefill:
            return None if run.packed is None else attend_packed(run, query, key, value, scale, options)
        if not _is_plain(run, decoder, module, policy, (query, key, value), options):
            return None
        output, run.received = attention_and_sums(
            query, key, value, scale=scale, key_valid=run.sees.valid, row_valid=prompt_rows(run, policy)[1]
        )
        run.request.summed.add(number)
        return output

    return attend


def _is_plain(run: Pass, decoder: Decoder, module: nn.Module, policy: CachePolicy, states: tuple[Tensor, ...],
              options: dict[str, Any]) -> bool:  # fmt: skip
    """Whether sums over all rows are wanted of a call that is a causal softmax and nothing else, on a CPU.

    Eager attention is left alone, since it hands its maps to whoever asked for them; so is a call whose gradients are
    needed.
    """
    if not sums_prompt(policy) or prompt_rows(run, policy)[0] is not None:
        return False
    if base_implementation(decoder.config) != "sdpa" or autocast_is_on(states[0]):
        return False
    if any(each.device.type != "cpu" or each.dtype not in _DTYPES for each in states):
        return False
    if torch.is_grad_enabled() and any(each.requires_grad for each in states):
        return False
    others = {name for name, option in options.items() if isinstance(option, Tensor)} - _UNDERSTOOD
    if others or options.get("dropout") or options.get("softcap") is not None:
        return False
    sees, mask = run.sees, options.get("attention_mask")
    if sees.window is not None or sees.blocks is not None:
        return False
    if mask is None:
        asked = options.get("is_causal")
        causal = getattr(module, "is_causal", True) if asked is None else asked
        return causal and not decoder.masked and sees.valid is None and states[0].shape[2] == sees.length
    return isinstance(mask, Tensor) and mask.dim() == 4 and _is_causal(run, sees, mask, states[0])


def _is_causal(run: Pass, sees: Visibility, mask: Tensor, query: Tensor) -> bool:
    """Whether a mask shows every real row what the pass says it sees. Layers share a mask, and the answer."""
    name = ("causal", id(mask), id(sees.valid))
    if name not in run.memo:
        heads, rows = query.shape[1:3]
        seen = over_heads(sees.rows(torch.arange(sees.length - rows, sees.length, device=query.device)), heads)
        if mask.dtype == torch.bool:
            alike = mask == seen
        else:
            alike = torch.where(seen, mask == 0, mask <= torch.finfo(mask.dtype).min / 2)
        assert run.sequence is not None
        if run.sequence.valid is not None:
            alike = alike | ~run.sequence.valid[:, None, :, None]
        run.memo[name] = bool(alike.all()), mask, sees.valid  # the key is made of ids: keep the objects that it names
    answer: bool = run.memo[name][0]
    return answer
