"""Conversations on one cache, and an independent reference of what they compute: the whole conversation at full length through
the model's own layers, in which a token sees of its own turn what entered the layer and of earlier turns what the cache held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tests.models.families import Family
from tests.models.naive import dense_inputs, numbered_anew, placeholders
from tests.tiny_models import cached
from tokcomp import Pipeline
from tokcomp.models.adapter import find_adapter
from tokcomp.runner.arguments import cache_in
from tokcomp.runner.cache import CompressedLayer
from tokcomp.runner.trace import Trace

__all__ = ["Heard", "answer", "comparable", "converse", "reference", "whole"]


@dataclass
class Heard:
    """What was seen of one turn.

    Attributes:
        length: its tokens.
        first: states that entered the first layer, by column ``[l, d]``, 0 where nothing did.
        hidden: last hidden states, by column ``[l, d]``.
        kept: per layer the vision tokens that entered it, None where the turn has none.
        held: per layer and head the columns of the conversation that the cache holds afterwards.
    """

    length: int
    first: Tensor
    hidden: Tensor
    kept: list[Tensor] | None
    held: list[list[list[int]]]


def answer(n: int, seed: int) -> dict[str, Any]:
    """A turn of ``n`` text tokens."""
    return {"input_ids": torch.randint(3, 100, (1, n), generator=torch.Generator().manual_seed(seed))}


def converse(model: Any, turns: Sequence[dict[str, Any]], trace: Trace | None = None) -> list[Heard]:
    """Read the turns one after the other into one cache; ``trace``: that of the pipeline that is attached, None for none."""
    decoder, cache, heard = find_adapter(model).decoder, None, []
    for number, turn in enumerate(turns):
        if "token_type_ids" in turn:  # by which the models that take them want the whole conversation
            turn = {**turn, "token_type_ids": _types(turns[: number + 1])}
        seen: dict[str, Tensor] = {}
        before = 0 if trace is None else len(trace.requests)
        handles = [
            decoder.layers[0].register_forward_pre_hook(
                lambda m, args, kwargs, seen=seen: seen.update(first=args[0] if args else kwargs["hidden_states"]),
                with_kwargs=True),
            decoder.module.register_forward_hook(lambda m, args, out, seen=seen: seen.update(hidden=out[0])),
        ]  # fmt: skip
        cache = cache_in(model(**turn, **(cached(model, cache) if cache is not None else {}), use_cache=True))
        for handle in handles:
            handle.remove()
        length = turn["input_ids"].shape[1]
        first = seen["hidden"].new_zeros(length, seen["hidden"].shape[-1])
        new = trace.last if trace is not None and len(trace.requests) > before else None
        entered = torch.arange(length) if new is None else new._request.layers[0].index[0]
        first[entered] = seen["first"][0]
        kept = None if new is None else [layer[0] for layer in new.kept]
        heard.append(Heard(length, first, seen["hidden"][0], kept, [_held(layer) for layer in cache.layers]))
    return heard


def _types(turns: Sequence[dict[str, Any]]) -> Tensor:
    """The token types of several turns; an answer is no part of any image, nor of a prefix that sees itself."""
    other = 1 if any(int(turn["token_type_ids"].max()) == 0 for turn in turns if "token_type_ids" in turn) else 0
    return torch.cat([turn.get("token_type_ids", torch.full_like(turn["input_ids"], other)) for turn in turns], dim=1)


def _held(layer: Any) -> list[list[int]]:
    if not isinstance(layer, CompressedLayer):
        return [list(range(layer.get_seq_length()))]
    index = layer.full_index()[0].expand(layer.keys.shape[1], -1)
    valid = torch.ones_like(index, dtype=torch.bool)
    if layer.valid is not None:
        valid[:, : layer.valid.shape[-1]] = layer.valid[0]
    if layer.visible is not None:
        valid &= layer.visible[0]
    return [row[real].tolist() for row, real in zip(index, valid, strict=True)]


def comparable(pipeline: Pipeline, trace: Any) -> bool:
    """Whether the reference can say what a pipeline computes: it knows of dropped tokens and of new numbers, but neither of
    merged states and values, nor of tokens in another order or keys that are rotated later."""
    requests = [record._request for record in trace.requests]
    plain = not any(request.merges or request.prompt.stands is not None for request in requests)
    policy = pipeline.cache
    return plain and (policy is None or (policy.positions != "rerotate" and policy.name not in ("lookm", "merging")))


def whole(family: Family, turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The conversation as one prompt."""
    pictured = [turn for turn in turns if len(turn) > 1]
    sample = {k: v for k, v in family.batch(pictured).items() if k != "attention_mask"}
    for name in [name for name in sample if sample[name].shape[0] == len(pictured) and sample[name].dim() == 2]:
        if all(turn[name].shape == turn["input_ids"].shape for turn in pictured):
            sample[name] = torch.cat([turn.get(name, torch.zeros_like(turn["input_ids"])) for turn in turns], dim=1)
    if "token_type_ids" in sample:
        sample["token_type_ids"] = _types(turns)
    return sample


def reference(model: Any, sample: dict[str, Any], heard: Sequence[Heard], pipeline: Pipeline) -> list[Tensor]:
    """Last hidden states of each turn's columns ``[l, d]``; 0 where a token did not come so far."""
    adapter = find_adapter(model)
    decoder, heads = adapter.decoder, adapter.decoder.config.num_attention_heads
    given, masks = dense_inputs(model, sample)
    hidden = torch.cat([turn.first for turn in heard])[None]
    length = hidden.shape[1]
    position = torch.arange(length)[None] if given.get("position_ids") is None else given["position_ids"].squeeze(-2)
    position = (position[-decoder.planes :] if position.dim() == 2 else position[None]) - decoder.first_position
    vision = torch.zeros(length, dtype=torch.bool)
    vision[placeholders(adapter, sample["input_ids"])] = True
    starts = torch.tensor([0, *[turn.length for turn in heard]]).cumsum(0).tolist()
    alive_at, own_position = _per_layer(heard, starts, vision, position, pipeline, decoder)
    deep = given.get("deepstack_visual_embeds") or []
    for number, (layer, mask) in enumerate(zip(decoder.layers, masks, strict=True)):
        alive, at = alive_at[number], own_position[number] + decoder.first_position
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        seen = causal if mask is None else mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] == 0
        visible = (seen & alive).expand(heads, -1, -1).clone()
        for turn in range(len(heard)):
            rows = slice(starts[turn], starts[turn + 1])
            visible[:, rows, starts[turn + 1] :] = False  # a prefix that attends in both directions ends with its turn
            columns = heard[turn - 1].held[number] if turn else [[]]
            for head in range(heads):
                there = torch.zeros(length, dtype=torch.bool)
                there[columns[head * len(columns) // heads]] = True
                there[starts[turn] :] = True
                visible[head, rows] &= there
        visible |= torch.eye(length, dtype=torch.bool)
        shown: Tensor = visible[None]
        if (decoder.config._attn_implementation or "").endswith("eager"):
            shown = torch.zeros(shown.shape).masked_fill(~shown, torch.finfo(torch.float32).min)
        rotary = decoder.rotary(hidden, at.unsqueeze(1) if decoder.planes > 1 else at, number)
        hidden = layer(hidden, attention_mask=shown, position_embeddings=rotary)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        if number < len(deep):
            hidden = hidden.index_add(1, given["visual_pos_masks"][0].nonzero()[:, 0], deep[number][None])
    assert decoder.norm is not None
    out = decoder.norm(hidden)[0].masked_fill(~alive_at[-1][:, None], 0.0)
    return [out[starts[turn] : starts[turn + 1]] for turn in range(len(heard))]


def _per_layer(heard: Sequence[Heard], starts: list[int], vision: Tensor, position: Tensor, pipeline: Pipeline,
               decoder: Any) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Per layer which columns enter it ``[l]``, and the positions ``[p, l]`` by which it turns them."""
    depth, length = len(decoder.layers), position.shape[1]
    alive_at = [torch.ones(length, dtype=torch.bool) for _ in range(depth)]
    own = [torch.zeros_like(position) for _ in range(depth)]
    following, dense = [0] * depth, 0  # the next position in each layer, and in the uncompressed conversation
    places: list[dict[int, list[int]]] = [{} for _ in range(depth)]
    for turn, (start, end) in enumerate(pairwise(starts)):
        local, columns = position[:, start:end] - dense, vision[start:end].nonzero()[:, 0]
        dense = int(position[:, start:end].max()) + 1
        last, kept = torch.ones(end - start, dtype=torch.bool), heard[turn].kept
        for number in range(depth):
            alive = torch.ones(end - start, dtype=torch.bool)
            if kept is not None:
                alive[columns] = False
                alive[columns[kept[number]]] = True
            stage = pipeline.vision if number == 0 else pipeline.prefill
            if stage is not None and stage.positions == "renumber" and not torch.equal(alive, last):
                local = numbered_anew(local if len(local) > 1 else local[0], last, alive, 0).view(len(local), -1)
            last = alive
            alive_at[number][start:end] = alive
            own[number][:, start:end] = following[number] + local
            following[number] += int(local[:, alive].max()) + 1
            for column in (alive.nonzero()[:, 0] + start).tolist():
                places[number][column] = own[number][:, column].tolist()
            policy = None if kept is None or pipeline.cache is None else pipeline.cache.of_layer(number, depth)
            if policy and policy.positions == "renumber" and len(local) == 1:
                following[number] = max(len(head) for head in heard[turn].held[number])
            elif policy and policy.positions == "renumber":
                following[number] -= _closed_up(places[number], heard[turn].held[number][0])
    return alive_at, own


def _closed_up(places: dict[int, list[int]], held: Sequence[int]) -> int:
    """How many numbers nobody has any more when of the entries at ``places``, by column, those are left that are ``held``;
    these get their new numbers."""
    gone = {v for planes in places.values() for v in planes} - {v for column in held for v in places[column]}
    left = {column: [v - sum(g < v for g in gone) for v in places[column]] for column in held}
    places.clear()
    places.update(left)
    return len(gone)
