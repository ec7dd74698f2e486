"""An independent reference of what a pipeline computes: the full-length sequence through the model's own layers, with the
dropped tokens masked out of attention and positions as declared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokcomp import Pipeline
from tokcomp.models.adapter import Adapter, find_adapter
from tokcomp.runner.arguments import by_name

__all__ = ["dense_inputs", "hidden_of", "masked", "placeholders"]


def dense_inputs(model: Any, sample: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """What the decoder, and the mask that each of its layers, gets without tokcomp."""
    decoder = find_adapter(model).decoder
    given: dict[str, Any] = {}
    masks: list[Any] = []
    handles = [decoder.module.register_forward_pre_hook(
        lambda module, args, kwargs: given.update(by_name(module, args, kwargs)), with_kwargs=True)]  # fmt: skip
    first = decoder.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: given.update(first=args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    handles.append(first)
    for layer in decoder.layers:
        handles.append(layer.register_forward_pre_hook(
            lambda module, args, kwargs: masks.append(kwargs.get("attention_mask")), with_kwargs=True))  # fmt: skip
    model(**sample)
    for handle in handles:
        handle.remove()
    return given, masks


def hidden_of(model: Any, sample: dict[str, Any]) -> Tensor:
    """The decoder's last hidden states ``[b, l, d]`` in the columns of the prompt."""
    seen: list[Tensor] = []
    handle = find_adapter(model).decoder.module.register_forward_hook(lambda module, args, out: seen.append(out[0]))
    model(**sample)
    handle.remove()
    return seen[0]


def placeholders(adapter: Adapter, ids: Tensor) -> Tensor:
    """Columns of the vision tokens of one prompt."""
    tokens = torch.tensor([modality.token_id for modality in adapter.modalities])
    return torch.isin(ids[0], tokens).nonzero()[:, 0]


def numbered_anew(position: Tensor, before: Tensor, after: Tensor, first: int) -> Tensor:
    """Plain numbers 0, 1, 2..., or planes ``[p, l]`` in which values that no token has any more are closed up."""
    if position.dim() == 1:
        return (after.long().cumsum(0) - 1).clamp(min=0) + first
    gone = set(position[:, before].flatten().tolist()) - set(position[:, after].flatten().tolist())
    return torch.tensor(
        [[value - sum(other < value for other in gone) for value in plane] for plane in position.tolist()]
    )


def masked(model: Any, sample: dict[str, Any], kept: Sequence[Tensor], pipeline: Pipeline) -> tuple[Tensor, Tensor]:
    """Last hidden states ``[l, d]`` of the full-length sequence, and which columns are alive at the end ``[l]``."""
    adapter = find_adapter(model)
    decoder, ids = adapter.decoder, sample["input_ids"]
    given, masks = dense_inputs(model, sample)
    hidden, length = given["first"], ids.shape[1]
    columns = placeholders(adapter, ids)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    position = torch.arange(length) if given.get("position_ids") is None else given["position_ids"].squeeze(-2)
    position = position[-3:] if position.dim() == 2 else position  # a fourth plane in front numbers the text
    deep = given.get("deepstack_visual_embeds") or []
    numbered, last = None, torch.ones(length, dtype=torch.bool)
    for number, (layer, tokens, mask) in enumerate(zip(decoder.layers, kept, masks, strict=True)):
        alive = torch.ones(length, dtype=torch.bool)
        alive[columns] = False
        alive[columns[tokens]] = True
        if numbered is None or not torch.equal(alive, numbered):
            stage = pipeline.vision if numbered is None else pipeline.prefill
            if stage is not None and stage.positions == "renumber" and not bool(alive.all()):
                position = numbered_anew(position, last, alive, decoder.first_position)
            numbered = last = alive
        seen = causal if mask is None else mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] == 0
        visible = (seen & alive) | torch.eye(length, dtype=torch.bool)
        rotary = decoder.rotary(hidden, position.unsqueeze(-2), number)
        hidden = layer(hidden, attention_mask=visible[None, None], position_embeddings=rotary)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        if number < len(deep):
            hidden = hidden.index_add(1, given["visual_pos_masks"][0].nonzero()[:, 0], deep[number][None])
    assert decoder.norm is not None
    return decoder.norm(hidden)[0], last
