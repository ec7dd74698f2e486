"""Matches encoded images with the placeholders of a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokcomp.errors import CompatibilityError, FeatureError
from tokcomp.runner.images import Images
from tokcomp.runner.request import Prompt

__all__ = ["Placement", "build_prompt", "place_images", "refuse_misfit", "text_digest"]

_ODD = -7046029254386353131


@dataclass(frozen=True)
class Item:
    """One image or video of a prompt: the ``owner``-th of tower call ``call``, which fills ``length`` placeholders from
    the call's ``start``-th on."""

    call: int
    owner: int
    start: int
    length: int


@dataclass(frozen=True)
class Placement:
    """Which image stands where.

    Attributes:
        images: the tower calls that belong to this prompt.
        counts: placeholders of each sample, of all kinds.
        items: per kind and sample the images in the order of their placeholders.
    """

    images: list[Images]
    counts: list[int]
    items: Mapping[str, list[list[Item]]] = field(default_factory=dict)

    def of_sample(self, sample: int) -> list[Item]:
        """The images of a sample, kind by kind."""
        return [item for items in self.items.values() for item in items[sample]]

    def rows(self, item: Item) -> list[tuple[int, int]]:
        """The tower call and the rows there that an image or video is made of."""
        owners = self.images[item.call].layout.owners
        return [(item.call, row) for row, owner in enumerate(owners) if owner == item.owner]


def place_images(images: list[Images], counts: Mapping[str, Sequence[int]]) -> Placement:
    """Hand the encoded images out to the samples, in order.

    Beams and ``num_return_sequences`` repeat every sample, images included, so one encoding may serve several rows.

    Args:
        images: tower calls, oldest first.
        counts: per kind the placeholders of each sample.

    Raises:
        FeatureError: placeholders and features disagree.
    """
    items = {kind: _hand_out(kind, _items(images, kind), numbers) for kind, numbers in counts.items()}
    return Placement(images, [sum(sample) for sample in zip(*counts.values(), strict=True)], items)


def _items(images: list[Images], kind: str) -> list[Item]:
    items = []
    for call, table in enumerate(images):
        start = 0
        for owner, length in enumerate(table.layout.lengths if table.kind == kind else ()):
            items.append(Item(call, owner, start, length))
            start += length
    return items


def _hand_out(kind: str, items: list[Item], counts: Sequence[int]) -> list[list[Item]]:
    total, tokens = sum(counts), sum(item.length for item in items)
    if tokens == 0 or total % tokens:
        if total == tokens:
            return [[] for _ in counts]
        raise FeatureError(
            f"the prompt has {total} {kind} placeholders, but the {kind}s give {tokens} tokens: build input_ids and "
            "pixel_values with the model's own processor (chunked prefill is not supported)"
        )
    repeats, at = total // tokens, 0
    samples: list[list[Item]] = []
    for sample in range(0, len(counts), repeats):
        end, filled = at, 0
        while filled < counts[sample] and end < len(items):
            filled += items[end].length
            end += 1
        if filled != counts[sample]:
            raise FeatureError(
                f"sample {sample} has {counts[sample]} {kind} placeholders, but its {kind}s give {filled} tokens: build "
                "input_ids and pixel_values with the model's own processor"
            )
        samples += [items[at:end]] * repeats
        at = end
    return samples


def refuse_misfit(kind: str, lengths: Sequence[int], counts: Sequence[int]) -> None:
    """Raise where images or videos of these lengths do not fill the placeholders ``counts`` of the samples.

    Raises:
        FeatureError: placeholders and features disagree.
    """
    total, tokens = sum(counts), sum(lengths)
    if total == 0 or total % tokens:
        raise FeatureError(
            f"the prompt has {total} {kind} placeholders, but the {kind}s give {tokens} tokens: build input_ids and "
            "pixel_values with the model's own processor, in a later turn for its own images alone (chunked prefill is not "
            "supported)"
        )
    if total == tokens:  # else other calls fill the rest, or samples are repeated
        _hand_out(kind, [Item(0, owner, 0, length) for owner, length in enumerate(lengths)], counts)


def build_prompt(masks: Mapping[str, Tensor], valid: Tensor, placement: Placement, *, digest: Tensor | None) -> Prompt:
    """The columns of the prompt.

    Args:
        masks: per kind the placeholders ``[b, l]``. ``valid``: the padding mask ``[b, l]``.
    """
    mask = torch.stack(list(masks.values())).any(dim=0)
    zeros = torch.zeros_like(mask, dtype=torch.long)
    alive, sizes, protected = torch.zeros_like(mask), torch.ones_like(mask, dtype=torch.float32), torch.zeros_like(mask)
    starts, unit, call = torch.zeros_like(mask), zeros - 1, zeros - 1
    stands = None
    for kind, columns in masks.items():
        filled = _filled(placement, kind, columns)
        if filled is None:
            continue
        alive, sizes = alive.masked_scatter(columns, filled.alive), sizes.masked_scatter(columns, filled.sizes)
        protected, starts = (
            protected.masked_scatter(columns, filled.protected),
            starts.masked_scatter(columns, filled.starts),
        )
        unit, call = unit.masked_scatter(columns, filled.unit), call.masked_scatter(columns, filled.call)
        if filled.stands is not None:
            own = torch.arange(mask.shape[1], device=mask.device).expand_as(zeros) if stands is None else stands
            stands = own.masked_scatter(columns, columns.nonzero()[:, 1][filled.stands])
    rank = mask.long().cumsum(dim=1) - 1
    after = valid & ~mask & (mask.long().flip(1).cumsum(1).flip(1) == 0)
    rows = int(after.sum(dim=1).max())
    return Prompt(
        origin=rank.where(alive, -1),
        image=(starts.long().cumsum(dim=1) - 1).where(mask, -1),
        sizes=sizes,
        protected=protected,
        valid=valid & (alive | ~mask),
        lengths=valid.sum(dim=1),
        unit=unit,
        call=call,
        stands=stands,
        text_rows=rows,
        text_valid=_right_aligned(after, rows),
        digest=digest,
    )


@dataclass(frozen=True)
class _Filled:
    """All placeholders of one kind ``[p]``, in the order in which the model fills them."""

    alive: Tensor
    sizes: Tensor
    protected: Tensor
    starts: Tensor
    unit: Tensor
    call: Tensor
    stands: Tensor | None


def _filled(placement: Placement, kind: str, like: Tensor) -> _Filled | None:
    items = [item for sample in placement.items[kind] for item in sample]
    if not items:
        return None
    tables = {call: _placeholders_of(placement.images[call]) for call in {item.call for item in items}}
    moved = any(placement.images[call].reordered for call in tables)
    parts: list[list[Tensor]] = []
    filled = 0
    for run in _runs(items):
        first, length = run[0], sum(item.length for item in run)
        span = slice(first.start, first.start + length)
        alive, sizes, protected, unit, stands = (values[span] for values in tables[first.call])
        stands = stands + (filled - first.start) if moved else stands
        parts.append([alive, sizes, protected, _starts(run, alive), unit, torch.full_like(unit, first.call), stands])
        filled += length
    joined = parts[0] if len(parts) == 1 else [torch.cat(column) for column in zip(*parts, strict=True)]
    columns = [column.to(like.device) for column in joined]
    alive, sizes, protected, starts, unit, call, stands = columns
    return _Filled(alive, sizes, protected, starts, unit, call, stands if moved else None)


def _runs(items: Sequence[Item]) -> list[list[Item]]:
    """The images cut into runs that stand side by side in one tower call."""
    runs: list[list[Item]] = []
    for item in items:
        last = runs[-1][-1] if runs else None
        if last is not None and (last.call, last.start + last.length) == (item.call, item.start):
            runs[-1].append(item)
        else:
            runs.append([item])
    return runs


def _starts(run: Sequence[Item], like: Tensor) -> Tensor:
    """Which placeholders of a run are the first of their image ``[p]`` bool."""
    length = run[0].length
    if all(item.length == length for item in run):
        return torch.arange(like.shape[0], device=like.device) % length == 0
    starts = torch.zeros_like(like)
    for item in run:
        starts[item.start - run[0].start] = True
    return starts


def _placeholders_of(table: Images) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The placeholders of a tower call ``[p]``: whether a token stands there, its size and protection, the unit (-1 for a
    separator) and the placeholder whose token shall stand there."""
    flat = table.flat
    of_units = (table.alive(), table.at_units(table.sizes), table.at_units(table.protected))
    alive, sizes, protected = (values.flatten() if table.even else values.flatten()[flat] for values in of_units)
    placed = table.layout.placed
    if placed is None:
        own = torch.arange(flat.shape[0], device=flat.device)
        # Unit j of a row is j placeholders behind its first one.
        stands = own - flat % table.n_units + table.standing().flatten()[flat] if table.reordered else own
        return alive, sizes, protected, own, stands
    unit = placed.to(flat.device)
    index, separator = unit.clamp(min=0), unit < 0
    # Where the model packs rows into an image, tokens stand in the order of the image.
    own = torch.arange(unit.shape[0], device=flat.device)
    return alive[index] | separator, sizes[index].masked_fill(separator, 1.0), protected[index] & ~separator, unit, own


def _right_aligned(mask: Tensor, rows: int) -> Tensor:
    """How many columns each row has, as a right-aligned mask ``[b, rows]``."""
    return torch.arange(rows, 0, -1, device=mask.device) <= mask.sum(dim=1, keepdim=True)


def text_digest(embeds: Tensor, text: Tensor, placement: Placement | None) -> Tensor:
    """An integer per sample from its text tokens and its images' pixels ``[b]``.

    Embeddings of text are table rows, so their bits do not depend on the batch; a token counts by its place among the
    sample's text tokens, so padding does not matter.
    """
    bits = embeds.detach().float().contiguous().view(torch.int32).long().sum(dim=-1)
    place = text.long().cumsum(dim=1) * 2 + 1
    digest = (bits * place * _ODD).masked_fill(~text, 0).sum(dim=1)
    if placement is None or any(images.digest is None for images in placement.images):
        return digest
    extra = []
    for sample in range(digest.shape[0]):
        rows = [row for item in placement.of_sample(sample) for row in placement.rows(item)]
        pixels = [placement.images[call].digest[row] for call, row in rows]  # type: ignore[index]
        extra.append(sum(((2 * i + 3) * value for i, value in enumerate(pixels)), start=digest.new_zeros(())))
    return digest + torch.stack(extra).to(digest.device)


def refuse_without_text(prompt: Prompt, who: str) -> None:
    """Raise where a strategy that is guided by text, as its setting ``who`` says, has nothing to go by."""
    if prompt.text_valid is None or not bool(prompt.text_valid.any(dim=1).all()):
        raise CompatibilityError(
            f"{who} is guided by the text after the image, and a prompt has none: put text after the image"
        )
