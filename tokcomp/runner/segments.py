"""A packed tower: all images and frames of a call one after another in one sequence, patches in groups.

The token table counts in units, a group of patches each; the tower's blocks count in patches. What leaves takes its whole
group along, and the segments within which a block attends, its rotary tables and the model's own bookkeeping follow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokcomp.ops.received import received_attention, unsplit
from tokcomp.plugin_signals import attended
from tokcomp.runner.extra import from_tower
from tokcomp.runner.images import Images
from tokcomp.types import Signal

__all__ = ["Segments"]

_MASKED = torch.finfo(torch.float16).min


@dataclass
class Segments:
    """Where the tokens of a table stand in the tower's sequence.

    Attributes:
        images: the token table, which the runner changes as tokens leave.
        group: patches that a unit is made of.
        original: where each unit stood at first, in units ``[i, n]``.
        home: where each token's own unit stood at first, ascending ``[s]``; s tokens are left in all.
        place: where each token of the table stands now ``[i, k]``.
        rows: the row of each token of the sequence ``[s]``.
        weighs: whether blocks add log(size) to the logits of merged tokens.
        segments: tokens of each segment within which the block that comes next attends, in patches.
    """

    images: Images
    group: int
    original: Tensor
    home: Tensor
    place: Tensor
    rows: Tensor
    weighs: bool = False
    segments: list[int] = field(default_factory=list)
    _queries: list[Tensor] = field(default_factory=list)
    _keys: list[Tensor] = field(default_factory=list)
    _memo: dict[int, tuple[Any, dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def fresh(cls, images: Images, *, weighs: bool) -> Segments:
        """Nothing has left yet."""
        members = images.members
        assert members is not None
        group = members.shape[2]
        starts = torch.tensor([0, *images.units], device=members.device).cumsum(0)[:-1]
        original = members[..., 0] // group + starts[:, None]
        counts = torch.tensor(images.units, device=members.device)
        rows = torch.arange(len(counts), device=members.device).repeat_interleave(counts)
        return cls(images, group, original, torch.arange(len(rows), device=rows.device), original, rows, weighs)

    def follow(self) -> None:
        """The table has lost tokens: close the sequence up."""
        home = self.original.gather(1, self.images.origin)
        valid = self.images.valid
        self.home = home[valid].sort().values
        self.place = torch.searchsorted(self.home, home).clamp(max=len(self.home) - 1)
        self.rows = torch.empty_like(self.home)
        rows = torch.arange(valid.shape[0], device=valid.device)[:, None].expand_as(valid)
        self.rows[self.place[valid]] = rows[valid]
        self._memo.clear()

    # -- between the table and the sequence --------------------------------------------------------------------------

    def to_table(self, sequence: Tensor) -> Tensor:
        """One state per token ``[s, d]``, or one per patch ``[s * group, d]``, as ``[i, k, d']``; 0 where padded."""
        units = sequence.reshape(len(self.home), -1)
        return units[self.place].masked_fill(~self.images.valid[..., None], 0)

    def to_sequence(self, table: Tensor, width: int) -> Tensor:
        """``[i, k, d']`` as states of ``width``, one or one per patch for each token of the sequence."""
        valid = self.images.valid
        units = table.new_empty(len(self.home), table.shape[-1])
        units[self.place[valid]] = table[valid]
        return units.view(-1, width)

    def filled(self, sequence: Tensor, value: float) -> Tensor:
        """One state per token left ``[s, d]`` among those of all units at first, ``value`` elsewhere ``[u, d]``."""
        units = sequence.new_full((int(sum(self.images.units)), sequence.shape[-1]), value)
        return units.index_copy(0, self.home, sequence)

    # -- around a block ----------------------------------------------------------------------------------------------

    def arguments(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What the model hands to a block, for the tokens that are left."""
        cumulative: Tensor = kwargs["cu_seqlens"]
        if id(cumulative) not in self._memo:
            changed = self._changed(kwargs) if self.images.touched else {}
            lengths = changed.get("cu_seqlens", cumulative).diff().tolist()
            self._memo[id(cumulative)] = (
                cumulative,
                {**changed, "_lengths": lengths},
            )  # the key is an id: keep its object
        changed = dict(self._memo[id(cumulative)][1])
        self.segments = changed.pop("_lengths")
        self._queries, self._keys = [], []
        return {**kwargs, **changed}

    def _changed(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        cumulative, group = kwargs["cu_seqlens"], self.group
        ends = cumulative[1:].to(self.home.device).long() // group
        counts = torch.bincount(torch.searchsorted(ends, self.home, right=True), minlength=len(ends))
        lengths = counts[counts > 0] * group
        ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(cumulative)
        longest = kwargs.get("max_seqlen")
        tables = [table.reshape(-1, group * table.shape[-1])[self.home].view(-1, table.shape[-1])
                  for table in kwargs["position_embeddings"]]  # fmt: skip
        return {
            "cu_seqlens": ends,
            "max_seqlen": None if longest is None else int(lengths.max()),
            "position_embeddings": tuple(tables),
        }

    def gathered(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor] | None:
        """Attention may be called segment by segment; once the last one is there, queries and keys of the whole sequence
        ``[1, h, s * group, d]``."""
        self._queries.append(query)
        self._keys.append(key)
        if sum(part.shape[2] for part in self._queries) < len(self.home) * self.group:
            return None
        whole = torch.cat(self._queries, dim=2), torch.cat(self._keys, dim=2)
        self._queries, self._keys = [], []
        return whole

    def bias(self, seen: int, length: int, dtype: torch.dtype) -> Tensor | None:
        """Additive mask over the ``length`` keys of a segment that begins at patch ``seen`` ``[1, 1, 1, length]``: merged
        tokens by size."""
        if not (self.weighs and self.images.touched):
            return None
        return self._log_sizes()[seen : seen + length].to(dtype)[None, None, None]

    def _log_sizes(self) -> Tensor:
        sizes = self.to_sequence(self.images.sizes.clamp(min=1).log()[..., None], 1)[:, 0]
        return sizes.repeat_interleave(self.group)

    @property
    def seen(self) -> int:
        """Patches whose attention was called in the block that is running."""
        return sum(part.shape[2] for part in self._queries)

    # -- signals -----------------------------------------------------------------------------------------------------

    def signals(self, query: Tensor, key: Tensor, scale: float, needs: frozenset[Any], layer: int) -> dict[str, Tensor]:
        """What a reducer asked for of one block's attention; of every unit the mean over its patches."""
        found: dict[str, Tensor] = {}
        if Signal.KEYS in needs:
            found["_keys"] = self._over_units(key.mean(dim=1)[0])
        if Signal.CLS_ATTENTION in needs:
            found["_cls_attention"] = self._over_units(self._received(query, key, scale)[:, None])[:, None, :, 0]
        wide = unsplit(query), unsplit(key)
        if Signal.UNSPLIT_ATTENTION in needs:
            received = self._received(*wide, wide[0].shape[-1] ** -0.5)
            found["_unsplit_attention"] = self._over_units(received[:, None])[..., 0]
        if Signal.UNSPLIT_KEYS in needs:
            found["_unsplit_keys"] = self._over_units(wide[1][0, 0])
        if attended(needs, "vision"):
            asked, keys = (self._by_row(x[0].transpose(0, 1)) for x in (query, key))
            made = from_tower(needs, asked, keys, scale, self._mask(), n_prefix=0, layer=layer)
            found |= {name: value.unflatten(1, (-1, self.group)).mean(dim=2) for name, value in made.items()}
        return found

    def _by_row(self, patches: Tensor) -> Tensor:
        """``[s * group, h, d]`` of the sequence's patches as ``[i, h, k * group, d]``."""
        table = self.to_table(patches.flatten(1)).unflatten(2, (self.group, *patches.shape[1:]))
        return table.flatten(1, 2).transpose(1, 2)

    def _mask(self) -> Tensor:
        """Additive mask ``[i, 1, t, t]``, t = k * group: a patch sees those of its segment, merged ones by their size."""
        numbers = torch.arange(len(self.segments), device=self.home.device)
        segment = numbers.repeat_interleave(torch.tensor(self.segments, device=self.home.device))
        own = self._by_row(segment[:, None, None])[:, 0, :, 0]  # (i, t)
        real = self.images.valid.repeat_interleave(self.group, dim=1)
        hidden = (own[:, None] != own[:, :, None]) | ~real[:, None]
        sizes = self.images.sizes.clamp(min=1).log().repeat_interleave(self.group, dim=1)
        bias = sizes if self.weighs and self.images.touched else torch.zeros_like(sizes)
        return bias[:, None].expand(hidden.shape).masked_fill(hidden, torch.finfo(bias.dtype).min)[:, None]

    def _over_units(self, patches: Tensor) -> Tensor:
        """``[s * group, d]`` as ``[i, k, d]``."""
        return self.to_table(patches.unflatten(0, (-1, self.group)).mean(dim=1))

    def _received(self, query: Tensor, key: Tensor, scale: float) -> Tensor:
        """What each patch receives from those of its image or frame, the mean over heads and over their rows
        ``[s * group]``; rows of other windows give nothing."""
        lengths = torch.tensor(self.segments, device=query.device)
        longest = max(self.segments)
        real = torch.arange(longest, device=query.device) < lengths[:, None]  # (segments, longest)

        def padded(x: Tensor) -> Tensor:
            by_segment = x.new_zeros(*real.shape, *x[0].transpose(0, 1).shape[1:])
            by_segment[real] = x[0].transpose(0, 1)
            return by_segment.transpose(1, 2)  # (segments, h, longest, d)

        bias = torch.zeros(real.shape, device=query.device).masked_fill_(~real, _MASKED)
        if self.weighs and self.images.touched:
            bias[real] = self._log_sizes()
        mean = received_attention(padded(query), padded(key), scale=scale, bias=bias[:, None, None], valid=real)
        of_row = torch.bincount(self.rows).repeat_interleave(torch.bincount(self.rows)) * self.group
        share = lengths.repeat_interleave(lengths) / of_row.repeat_interleave(self.group)
        return mean[real] * share
