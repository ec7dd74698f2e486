"""What a cache policy is shown of one layer, or of several at once as if they were samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokcomp.plugin_signals import extra_names
from tokcomp.runner.cache import CompressedLayer
from tokcomp.runner.entries import EntryTables, column
from tokcomp.runner.numbering import Numbering
from tokcomp.runner.passes import Observed, Pass
from tokcomp.runner.stacking import received
from tokcomp.runner.tables import lengthened
from tokcomp.stages import CachePolicy
from tokcomp.types import CacheView, Signal

__all__ = ["cache_view", "joined", "remembered", "seen_together"]


def cache_view(numbering: Numbering, policy: CachePolicy, layers: list[CompressedLayer], tables: EntryTables,
               observed: Observed, memory: dict[str, Tensor], *, marked: bool, final: Tensor | None = None,
               surveyed: Tensor | None = None) -> CacheView:  # fmt: skip
    """The view of ``layers``, which hold equally many entries.

    Args:
        memory: what the policy remembered of the entries that were there when it was last asked ``[b, g, m]``.
        marked: whether key tokens may be marked.
        final: ``[b, l0]`` the prompt's columns that were alive after the last layer.
        surveyed: ``[b, depth]`` what the policy's survey found in each layer.
    """
    first, length, decoder = layers[0], tables.index.shape[-1], numbering.decoder
    request, signals = first.request, policy.signals()
    whole = request.padded or length == first.length  # else what a later turn's prompt has written is shown alone
    memory = {name: lengthened(value, length, 0) for name, value in memory.items()}
    keys, values = first.keys[:, :, -length:], first.values[:, :, -length:]
    if len(layers) > 1:  # no policy that is asked about several layers looks at these: their sizes are enough
        keys = values = keys.new_empty(*tables.index.shape, 0)
    if final is not None and Signal.FINAL_TOKENS in signals:
        rows = first.rows if len(layers) == 1 else torch.cat([layer.rows for layer in layers if layer.rows is not None])
        final = column(final.to(tables.index.device)[rows], tables.index - request.start) & tables.valid
    return CacheView(
        layer=first.number,
        depth=len(decoder.layers),
        keys=keys,
        values=values,
        valid=tables.valid,
        index=tables.index.where(tables.valid, -1) if tables.padded else tables.index,
        vision=tables.vision,
        protected=tables.protected,
        prompt=tables.prompt,
        after=tables.after,
        initial=tables.initial,
        generated=first.seen - request.end,
        n_queries=first.fresh,
        group=decoder.config.num_attention_heads // tables.index.shape[1],
        memory=memory,
        padded=tables.padded,
        marked=marked,
        prompt_tokens=request.equal if whole else request.prompt.valid.shape[1],
        **_observed(policy, observed, length),
        _attention_rows=None if observed.rows is None else partial(_over_held, observed.rows, length),
        _queries=None if observed.queries is None else observed.queries[:, :, -length:],
        _rotation=partial(numbering.rotation, first) if Signal.QUERIES in signals else None,
        _surveyed=None if surveyed is None else surveyed.to(tables.index.device),
        _final=final if Signal.FINAL_TOKENS in signals else None,
        _known=tables.known,
        _digest=tables.digest if Signal.DIGEST in signals else None,
    )


def _observed(policy: CachePolicy, observed: Observed, length: int) -> dict[str, Any]:
    """The fields of the view with one number per entry: what entries receive, and plug-ins' signals."""
    extra = {name: value[..., -length:] for name, value in observed.extra.items()}
    received = None if observed.received is None else observed.received[..., -length:]
    return {"_received": received, "_extra": extra, "_declared": extra_names(policy.signals())}


def joined(group: list[tuple[CompressedLayer, Observed]]) -> Observed:
    """What was seen of several layers, one layer's samples after the other's."""
    # A layer with a window has let go of entries that its attention still read.
    sums = [seen.received[..., -layer.length :] for layer, seen in group if seen.received is not None]
    extra = group[0][1].extra if len(group) == 1 else {}  # policies that read some are asked about one layer at a time
    return Observed(None if not sums else sums[0] if len(sums) == 1 else torch.cat(sums), extra=extra)


def seen_together(run: Pass, layers: list[CompressedLayer], tables: EntryTables) -> tuple[Observed, Tensor | None]:
    """What was seen of ``layers`` in a later pass, and their keys side by side where they were needed for it."""
    asked = [run.asked[layer.number] for layer in layers if layer.number in run.asked]
    if not asked:
        return joined([(layer, run.noticed.get(layer.number, Observed())) for layer in layers]), None
    queries, keys = [query for query, _ in asked], [layer.keys for layer in layers]
    query, key = (side[0] if len(side) == 1 else torch.cat(side) for side in (queries, keys))
    return Observed(received(query, key, asked[0][1], tables.valid if tables.padded else None)), key


def remembered(layers: Sequence[CompressedLayer]) -> dict[str, Tensor]:
    """What the policy remembers of the entries of ``layers`` ``[layers * b, g, m]``."""
    first = layers[0].memory
    return first if len(layers) == 1 else {name: torch.cat([layer.memory[name] for layer in layers]) for name in first}


def _over_held(rows: Callable[[], Iterator[tuple[Tensor, Tensor]]], length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Attention rows over the last ``length`` keys, which are those that a layer with a window still holds."""
    for attention, real in rows():
        yield attention[..., -length:], real
