"""Matches encoded images with the placeholders of a prompt."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokcomp.errors import CompatibilityError, FeatureError
from tokcomp.runner.images import Images
from tokcomp.runner.request import Prompt

__all__ = ["Placement", "build_prompt", "place_images", "text_digest"]

_ODD = -7046029254386353131


@dataclass(frozen=True)
class Placement:
    """Which image stands where.

    Attributes:
        images: the tower calls that belong to this prompt.
        rows: for every image in prompt order, its tower call and its row there.
        per_sample: images of each sample.
    """

    images: list[Images]
    rows: list[tuple[int, int]]
    per_sample: list[int]


def place_images(pending: list[Images], counts: list[int]) -> Placement:
    """Hand the encoded images out to the samples, in order.

    Beams and ``num_return_sequences`` repeat every sample, images included, so one encoding may serve several rows.

    Args:
        pending: tower calls since the last prompt, oldest first.
        counts: image placeholders of each sample.

    Raises:
        FeatureError: placeholders and features disagree.
    """
    images = _belonging(pending, sum(counts))
    sizes = [(call, row, table.n_patches) for call, table in enumerate(images) for row in range(table.n_images)]
    repeats = sum(counts) // sum(size for *_, size in sizes)
    rows: list[tuple[int, int]] = []
    per_sample: list[int] = []
    at = 0
    for sample in range(0, len(counts), repeats):
        end, filled = at, 0
        while filled < counts[sample] and end < len(sizes):
            filled += sizes[end][2]
            end += 1
        if filled != counts[sample]:
            raise FeatureError(
                f"sample {sample} has {counts[sample]} image placeholders, but its images give {filled} tokens: build "
                "input_ids and pixel_values with the model's own processor"
            )
        group = [(call, row) for call, row, _ in sizes[at:end]]
        rows += group * repeats
        per_sample += [len(group)] * repeats
        at = end
    return Placement(images, rows, per_sample)


def _belonging(pending: list[Images], total: int) -> list[Images]:
    """The latest tower calls whose tokens fill ``total`` placeholders (calls of an aborted prompt may stand before them)."""
    tokens = 0
    for start in range(len(pending) - 1, -1, -1):
        tokens += pending[start].n_images * pending[start].n_patches
        if total % tokens == 0 and (start == 0 or tokens == total):
            return pending[start:]
    raise FeatureError(
        f"the prompt has {total} image placeholders, but the images give {tokens} tokens: build input_ids and pixel_values "
        "with the model's own processor (chunked prefill is not supported)"
    )


def build_prompt(mask: Tensor, valid: Tensor, placement: Placement, *, digest: Tensor | None) -> Prompt:
    """The columns of the prompt, from the placeholder mask ``[b, l]`` and the padding mask ``[b, l]``."""
    origin, image, sizes, protected = _flat_slots(placement)
    column = torch.zeros_like(mask, dtype=torch.long)
    origins = (column - 1).masked_scatter(mask, origin)
    text = valid & ~mask
    after = text & (mask.long().flip(1).cumsum(1).flip(1) == 0)
    rows = int(after.sum(dim=1).max())
    return Prompt(
        origin=origins,
        image=(column - 1).masked_scatter(mask, image),
        sizes=torch.ones_like(mask, dtype=torch.float32).masked_scatter(mask, sizes),
        protected=torch.zeros_like(mask).masked_scatter(mask, protected),
        valid=valid & ~(mask & (origins < 0)),
        lengths=valid.sum(dim=1),
        text_rows=rows,
        text_valid=_right_aligned(after, rows),
        digest=digest,
    )


def _flat_slots(placement: Placement) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Origin, image, size and protection of every placeholder, in the order in which the model fills them."""
    images, rows = placement.images, placement.rows
    tables = [_slots(table) for table in images]
    starts: list[int] = []
    numbers: list[int] = []
    for count in placement.per_sample:
        start = 0
        for number in range(count):
            starts.append(start)
            numbers.append(number)
            start += images[rows[len(starts) - 1][0]].n_patches
    parts = []
    for (call, row), start, number in zip(rows, starts, numbers, strict=True):
        origin, sizes, protected = (column[row] for column in tables[call])
        parts.append((origin.where(origin < 0, origin + start), torch.full_like(origin, number), sizes, protected))
    origin, image, sizes, protected = (torch.cat(column) for column in zip(*parts, strict=True))
    return origin, image.where(origin >= 0, -1), sizes, protected


def _slots(table: Images) -> tuple[Tensor, Tensor, Tensor]:
    """A tower call's survivors in their slots ``[i, n]``: origin (-1 where empty), size, protection."""
    empty = table.n_patches - table.origin.shape[1]
    pad = torch.nn.functional.pad
    origin = table.origin.masked_fill(~table.valid, -1)
    return (
        pad(origin, (0, empty), value=-1),
        pad(table.sizes, (0, empty)),
        pad(table.protected & table.valid, (0, empty)),
    )


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
    if placement is None or placement.images[0].digest is None:
        return digest
    at = 0
    extra = []
    for count in placement.per_sample:
        pixels = [placement.images[call].digest[row] for call, row in placement.rows[at : at + count]]  # type: ignore[index]
        extra.append(sum(((2 * i + 3) * value for i, value in enumerate(pixels)), start=digest.new_zeros(())))
        at += count
    return digest + torch.stack(extra)


def refuse_without_text(prompt: Prompt, who: str) -> None:
    """Raise where a text-guided strategy has nothing to go by."""
    if prompt.text_valid is None or not bool(prompt.text_valid.any(dim=1).all()):
        raise CompatibilityError(
            f"{who} is guided by the text after the image, and a prompt has none: put text after the image"
        )
