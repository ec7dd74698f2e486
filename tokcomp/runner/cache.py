"""The cache stage: cache layers of different lengths, and the policy that shortens them.

All state of a request after its prefill lives in its cache layers, so it follows the cache object wherever that goes: two
generations interleave, beams reorder it, a batch is expanded with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from tokcomp.errors import UnsupportedError
from tokcomp.ops.packed import Packed
from tokcomp.runner.columns import Columns
from tokcomp.runner.request import Entries, Request, Sequence
from tokcomp.runner.tables import filled

if TYPE_CHECKING:
    from tokcomp.runner.entries import Kept

__all__ = ["CompressedLayer", "bound_request"]


class CompressedLayer(Columns, DynamicLayer):
    """One layer of a request's cache, with its own length.

    Attributes:
        request: the prompt it belongs to.
        number: the layer.
        seen: tokens that the model has processed, dropped ones and padding included; what ``get_seq_length`` says, so
            that everything outside goes on in the numbering of the uncompressed prompt.
        valid: ``[b, 1|g, m]`` which of the first m entries are no padding (later ones never are), or None for all.
        index: ``[b, 1|g, m]`` prompt column of the first m entries; later entries are the tokens that followed.
        offset: ``[b]`` what this layer's positions lag behind the model's own, or None for nothing.
        phase: ``[b, 1|g, m]`` position of the first m keys in this layer's numbering, or ``[b, 1|g, m, p]`` planes of it;
            None where entries left by a policy that does not number anew.
        visible: ``[b, g, m]`` entries that the coming step may see, or None for all; used up by that step.
        rows: ``[b]`` row of the request that each row of the cache belongs to (beams move rows around).
        kin: layers with equal ``kin`` hold the same tokens and share their masks; None where a policy went its own way.
        packed: entries of heads that hold different numbers of them, without padding; ``keys`` and ``values`` then hold only
            what came after, and the first m entries above are these, padded.
        fresh: tokens that the latest pass has read. initial: vision entries that the layer held when the latest prompt had been
            written, of each row of the request. before: entries that it held, of those that are left, ahead of that prompt.
        prepared: a pipeline is attached and has made the coming pass fit this layer. attended: the pass reads ``packed`` too.
        memory: what the policy remembers per entry, ``[b, g, m]`` each.
        kept: these tables beside those of other layers, as they were when the policy was last asked about several; None where it
            was not.
        window: the model's own window in this layer (entries further back leave the cache), or None.
        dense: the entries are consecutive columns, the last one the latest: nothing between them was dropped.
        aligned: padding, if any, stands on the left, so that the oldest entries come first in every row.
    """

    keys: Tensor
    values: Tensor
    initial: Tensor  # set by `expect`

    def __init__(self, request: Request, number: int, window: int | None = None) -> None:
        super().__init__()
        self.request = request
        self.number = number
        self.window = window
        self.dense = self.aligned = True
        self.seen = 0
        self.valid: Tensor | None = None
        self.index: Tensor | None = None
        self.offset: Tensor | None = None
        self.phase: Tensor | None = None
        self.visible: Tensor | None = None
        self.memory: dict[str, Tensor] = {}
        self.rows: Tensor | None = None
        self.kin: int | None = None
        self.arriving: int | None = None
        self.packed: Packed | None = None
        self.prepared = self.attended = False
        self.fresh = self.before = 0
        self.kept: Kept | None = None
        self._counted: tuple[Tensor, Tensor] | None = None  # a table of validity, and how much padding it has

    # -- what transformers calls -------------------------------------------------------------------------------------

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.prepared:
            raise UnsupportedError(
                "this cache was compressed, and no pipeline is attached to the model: go on with it inside a `with` block of "
                "Pipeline.attach"
            )
        self.prepared = False
        if self.packed is not None and not self.attended:
            raise UnsupportedError(
                "this cache was packed by a policy with budgets per head: go on with it inside the `with` block of that policy"
            )
        keys, values = self._write(key_states, value_states, *args, **kwargs)
        fresh = key_states.shape[-2]
        # In the prefill a layer sees what is left of the prompt, but has "seen" all of it.
        later, request = self.arriving is None, self.request
        self.seen += fresh if self.arriving is None else self.arriving
        self.arriving, self.fresh = None, fresh
        length = self._note_entries()
        if later and request.reads is not None:
            request.reads[self.number].append((length, None if self.valid is None else self._padding(self.valid)))
        if self.window is not None and self.aligned:
            # As many entries as the next token can reach at most; dropped ones between them leave some beyond its window.
            self._forget(length - self.window + 1)
        return keys, values

    def _write(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store what a pass adds; returns all keys and values."""
        if self.is_initialized:
            self.keys = torch.cat([self.keys, keys], dim=-2)
            self.values = torch.cat([self.values, values], dim=-2)
        else:
            # Nothing to append to: the layer's own projections are the entries, without a copy.
            self.lazy_initialization(keys, values)
            self.keys, self.values = _own(keys), _own(values)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        raise UnsupportedError(
            "a compressed cache cannot be cropped (assisted decoding and prompt lookup need that): generate without an "
            "assistant model and without prompt_lookup_num_tokens"
        )

    def reset(self) -> None:
        super().reset()
        self.seen = self.before = 0
        self.dense = self.aligned = True
        self.valid = self.index = self.offset = self.phase = self.visible = self.rows = self.kin = self.packed = None
        self.memory, self.kept = {}, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx.to(self.keys.device))

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.is_initialized:
            # Beams change places within their sample, and packed entries of one sample are the same.
            moved = self.packed is None or self.rows is None or not torch.equal(self.rows[indices], self.rows)
            self._each_row(lambda x: x.index_select(0, indices) if indices.dtype != torch.bool else x[indices], moved)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            self._each_row(lambda x: x.repeat_interleave(repeats, dim=0))

    # -- what the runner calls ---------------------------------------------------------------------------------------

    @property
    def length(self) -> int:
        """Entries held, padding included (packed ones as if they had it)."""
        held = self.keys.shape[-2] if self.is_initialized and self.keys.dim() > 1 else 0
        return held if self.packed is None else self.packed.width + held

    def tensors(self) -> tuple[Tensor, ...]:
        """All keys and values that the layer holds on to."""
        packed = () if self.packed is None else (self.packed.keys, self.packed.values)
        return (self.keys, self.values, *packed) if self.is_initialized else ()

    def expect(self, request: Request, sequence: Sequence, initial: Tensor, rows: Tensor, offset: Tensor | None,
               kin: int | None) -> None:  # fmt: skip
        """The prompt of ``request`` is about to write ``sequence``, which is what is left of it; ``initial`` ``[b]`` vision
        tokens will be here then, numbered ``offset`` behind the model's own. ``rows``: 0, 1, 2... ``[b]``."""
        columns, at = request.prompt.valid.shape[1], sequence.positions
        if self.offset is not None:
            at = at - self.offset[:, None]
        phase = at[:, None] if at.dim() == 2 else at.permute(1, 2, 0)[:, None]
        valid = None if sequence.valid is None else sequence.valid[:, None]
        index = sequence.index[:, None]
        self.append_entries(request.start + index if request.start else index, valid, phase)
        self.before, self.dense = self.length, self.dense and sequence.length == columns
        self.request, self.initial, self.offset, self.rows = request, initial, offset, rows
        self.kin, self.arriving, self.prepared = kin, columns, True

    def likeness(self) -> tuple[object, ...]:
        """Layers of which this is equal hold equally many entries, and a policy can be asked about them at once."""
        noted = [None if table is None else table.shape[-1] for table in (self.index, self.valid)]
        return (self.keys.device, *self.keys.shape[:3], self.seen, self.before, self.window, *noted, *self.memory)

    def objects(self) -> tuple[object, ...]:
        """What is put in place of something else whenever the entries are others than before, or in another order; new ones at
        the end do not count."""
        return self.request, self.index, self.valid, self.rows, self.memory

    def evict(self, keys: Tensor, values: Tensor, columns: Tensor, valid: Tensor | None, kin: int | None) -> None:
        """Hold these entries ``[b, g, k, d]`` only, which stand at ``columns`` ``[b, g, k]`` of the uncompressed sequence;
        ``valid`` tells which are no padding. What the policy remembers is set by the caller."""
        self.index, self.valid, self.kin, self.phase = columns, valid, kin, None
        self.dense, self.aligned = False, self.aligned and valid is None
        self.keys, self.values = keys, values
        self._note_entries()

    def pack(self) -> None:
        """Store the entries without the padding of heads that hold fewer than others; nothing can leave after that."""
        if self.valid is None:
            return
        valid = filled(self.valid, self.length).expand(-1, self.keys.shape[1], -1)
        self.packed = Packed.pack(self.keys, self.values, valid)
        # New tensors, not views: the padded ones shall be freed.
        self.keys, self.values = (x.new_empty(*x.shape[:2], 0, x.shape[3]) for x in (self.keys, self.values))
        self._note_entries()

    def unpack(self) -> None:
        """Store packed entries with padding again, for a pass of many rows."""
        if self.packed is not None:
            keys, values = self.packed.unpack()
            self.keys, self.values = torch.cat([keys, self.keys], dim=2), torch.cat([values, self.values], dim=2)
            self.packed = None

    def held_keys(self) -> Tensor:
        """The keys ``[b, g, l, d]``."""
        return self.keys

    def _forget(self, oldest: int) -> None:
        """Let the ``oldest`` entries leave."""
        if oldest <= 0:
            return
        self.keys, self.values = self.keys[:, :, oldest:], self.values[:, :, oldest:]
        for name in ("valid", "index", "phase"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value[:, :, oldest:])
        self.memory = {name: value[..., oldest:] for name, value in self.memory.items()}
        self.before = max(self.before - oldest, 0)
        self._note_entries()

    def _each_row(self, change: Callable[[Tensor], Tensor], moved: bool = True) -> None:
        self.keys, self.values = change(self.keys), change(self.values)
        if self.packed is not None and moved:
            self.packed = self.packed.rows(change)
        self._each_table(change)

    def _each_table(self, change: Callable[[Tensor], Tensor]) -> None:
        for name in ("valid", "index", "offset", "phase", "visible", "rows"):
            value = getattr(self, name)
            # One row may serve the whole batch; it serves any other batch as well.
            if value is not None and (value.shape[0] > 1 or name == "rows"):
                setattr(self, name, change(value))
        self.memory = {name: change(value) for name, value in self.memory.items()}
        self._note_entries()

    def count_padding(self, counts: Tensor) -> None:
        """``counts`` ``[b, 1|g]`` of the entries are padding, which spares a count."""
        if self.valid is not None:
            self._counted = self.valid, counts

    def _padding(self, valid: Tensor) -> Tensor:
        """Padded entries of each sample and head ``[b, 1|g]``; what is appended never is padding."""
        if self._counted is None or self._counted[0] is not valid:
            self._counted = valid, (~valid).sum(dim=2)
        return self._counted[1]

    def _note_entries(self) -> int:
        """Tell the request how many entries there are now."""
        noted = self.request.entries[self.number]
        noted.length, noted.valid = self.length, self.valid
        return noted.length

    def entry(self) -> Entries:
        """How many entries there are now."""
        return Entries(self.length, self.valid)


def _own(states: Tensor) -> Tensor:
    """``states``, or a copy where they are a view that would keep more than themselves alive (fused projections)."""
    return states if states.untyped_storage().nbytes() == states.nbytes else states.clone()


def bound_request(cache: Any) -> Request | None:
    """The latest request of which this is the compressed cache, or None."""
    layers = getattr(cache, "layers", None)
    return layers[0].request if layers and isinstance(layers[0], CompressedLayer) and layers[0].seen else None
