"""What a compressed run computes that the unmodified model does not, and what it leaves out.

Both follow the runner. Tower blocks behind the last one that anybody needs do not run; of a block behind the feature
layer at which a reducer acts, only the attention runs. Attention scores are computed once more, queries times keys, for
the layers where a strategy wants to see them; not for sums over all rows of a prompt where the attention itself is made
with them (:mod:`tokcomp.runner.attending`: SDPA on a CPU).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from tokcomp.measure.shape import ModelShape
from tokcomp.measure.workload import ImageWork, ScoreWork, require_tower
from tokcomp.stages import CachePolicy, PrefillFilter, VisionReducer
from tokcomp.types import Signal

__all__ = ["blocks_run", "filter_scores", "image_work", "policy_scores", "reducer_scores", "summing_layers"]


def blocks_run(shape: ModelShape, reducer: VisionReducer | None) -> int:
    """Number of tower blocks that run, from the first one on: all without a reducer or where features are mixed."""
    depth = require_tower(shape).blocks
    if reducer is None or shape.feature_block is None:
        return depth
    acting = (site.layer or 0 for site in reducer.sites(depth))
    looked_at = (block or 0 for block in reducer.looks_at(depth))
    return 1 + max(shape.feature_block, *acting, *looked_at)


def image_work(shape: ModelShape, reducer: VisionReducer | None, entering: Sequence[float],
               projector_tokens: float) -> ImageWork:  # fmt: skip
    """The work of one image from the tokens that enter each block.

    A reducer between attention and MLP shortens the MLP of its own block: it computes what enters the next block.

    Args:
        shape: the model.
        reducer: the vision strategy.
        entering: tokens that enter each tower block and, last, those that leave the last one; prefix included.
        projector_tokens: tokens that the projector computes.
    """
    tower = require_tower(shape)
    ran = blocks_run(shape, reducer)
    middle = (
        {site.layer for site in reducer.sites(tower.blocks) if site.kind == "mid"} if reducer is not None else set()
    )
    mlp = [entering[block + 1] if block in middle else entering[block] for block in range(ran)]
    if reducer is not None and shape.feature_block is not None:
        mlp[max(shape.feature_block + 1, ran - 1) :] = [0] * (ran - 1 > shape.feature_block)
    return ImageWork(
        patches=entering[0] - tower.prefix,
        tower_tokens=tuple(entering[:ran]),
        mlp_tokens=None if mlp == list(entering[:ran]) else tuple(mlp),
        pooled=entering[-1],
        projector_tokens=projector_tokens,
    )


def reducer_scores(
    shape: ModelShape, reducer: VisionReducer | None, entering: Sequence[float]
) -> tuple[ScoreWork, ...]:
    """The attention that a reducer looks at, of one image: the CLS token's row in every block that it names or acts at;
    all rows in a tower without prefix tokens."""
    wanted = {Signal.CLS_ATTENTION, Signal.UNSPLIT_ATTENTION} & (reducer.signals() if reducer is not None else set())
    if reducer is None or not wanted:
        return ()
    tower = require_tower(shape)
    looks_at = reducer.looks_at(tower.blocks)
    own = reducer.sites(tower.blocks) if None in looks_at else ()
    blocks = {shape.feature_block if site.layer is None else site.layer for site in own} | set(looks_at)
    return tuple(
        ScoreWork(part="tower", rows=1 if tower.prefix else entering[block], keys=entering[block])
        for block in sorted(b for b in blocks if b is not None)
        for _ in wanted
    )


def filter_scores(
    strategy: PrefillFilter | None, layer_tokens: Sequence[float], text_rows: float
) -> tuple[ScoreWork, ...]:
    """The query rows (the last token's, or those of the text after the image) in every layer after which a filter acts,
    and the projections of those that look through the next layer's."""
    if strategy is None:
        return ()
    depth, scores = len(layer_tokens), []
    for layer in strategy.acts_after(depth):
        one, keys = strategy.of_layer(layer, depth), layer_tokens[layer]
        if Signal.QUERY_ATTENTION in one.signals() and one.queries is not None:
            rows = 1 if one.queries == "last" else text_rows
            scores.append(ScoreWork(part="language", rows=rows, keys=keys, projected=one.attention_of == "next"))
    return tuple(scores)


def policy_scores(policy: CachePolicy | None, layer_tokens: Sequence[float], decode_lengths: Sequence[Sequence[float]],
                  after: float, summed: Collection[int] = ()) -> tuple[ScoreWork, ...]:  # fmt: skip
    """Prompt rows (all, or the last few) and, for a policy that acts in decoding, every step's row.

    Args:
        after: text tokens that follow the last image, all tokens where there is none.
        summed: layers whose attention gives the sums over the prompt's rows by itself, so that they cost no product.
    """
    scores = []
    for layer, tokens in enumerate(layer_tokens):
        acting = None if policy is None else policy.of_layer(layer, len(layer_tokens))
        seen = frozenset() if acting is None else acting.signals() & {Signal.RECEIVED_ATTENTION, Signal.ATTENTION_ROWS}
        if acting is None or not seen:
            continue
        if layer not in summed:
            scores.append(ScoreWork(part="language", rows=_prompt_rows(acting, tokens, after), keys=tokens))
        if acting.decodes() and Signal.RECEIVED_ATTENTION in seen:
            scores += [ScoreWork(part="language", rows=1, keys=step[layer]) for step in decode_lengths]
    return tuple(scores)


def summing_layers(policy: CachePolicy, depth: int) -> tuple[int, ...]:
    """The layers where a policy looks at nothing but sums over all rows of a prompt, which SDPA on a CPU is made with."""
    found = []
    for layer in range(depth):
        acting = policy.of_layer(layer, depth)
        seen = frozenset() if acting is None else acting.signals() & {Signal.RECEIVED_ATTENTION, Signal.ATTENTION_ROWS}
        if acting is not None and seen == {Signal.RECEIVED_ATTENTION} and _all_rows(acting):
            found.append(layer)
    return tuple(found)


def _all_rows(policy: CachePolicy) -> bool:
    return policy.prefill_rows(torch.ones(1, dtype=torch.long), torch.ones(1, dtype=torch.long)) is None


def _prompt_rows(policy: CachePolicy, tokens: float, after: float) -> float:
    wanted = policy.prefill_rows(torch.tensor([round(tokens)]), torch.tensor([round(after)]))
    return tokens if wanted is None else max(1.0, min(float(wanted), tokens))
