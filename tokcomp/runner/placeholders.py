"""Matches encoded images with the placeholders of a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokcomp.errors import CompatibilityError, FeatureError
from tokcomp.runner.images import Images
from tokcomp.runner.sequence import Prompt

__all__ = ["Item", "Placement", "place_images", "refuse_misfit", "text_digest"]

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
    if not prompt.behind or min(prompt.behind) == 0:
        raise CompatibilityError(
            f"{who} is guided by the text after the image, and a prompt has none: put text after the image"
        )
