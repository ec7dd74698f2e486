"""Follows every image patch from the tower to the last layer, and puts it into words."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING

from tokcomp.runner.request import Request

if TYPE_CHECKING:
    from tokcomp.runner.trace import Fate, PerSample, Record

__all__ = ["fates", "summarise"]


def fates(request: Request, kept: tuple[PerSample, ...]) -> list[list[Fate]]:
    """For every sample the fate of each of its image patches, by placeholder index."""
    result, at = [], 0
    for sample, count in enumerate(request.images_of):
        patches: list[Fate] = []
        for call, row in request.image_rows[at : at + count]:
            patches += _of_image(request, call, row, len(patches), _leaving_layers(kept, sample))
        result.append(patches)
        at += count
    return result


def _leaving_layers(kept: tuple[PerSample, ...], sample: int) -> dict[int, int]:
    """Placeholder index -> the layer after which it left, for those that were dropped in the prefill."""
    leaving: dict[int, int] = {}
    for layer in range(1, len(kept)):
        if kept[layer] is not kept[layer - 1]:
            now = set(kept[layer][sample].tolist())
            leaving.update((index, layer - 1) for index in kept[layer - 1][sample].tolist() if index not in now)
    return leaving


def _of_image(request: Request, call: int, row: int, start: int, leaving: dict[int, int]) -> list[Fate]:
    from tokcomp.runner.trace import Fate

    table = request.images[call]
    source = table.source[row].tolist()
    origin = table.origin[row].tolist()
    patches = []
    for patch, slot in enumerate(source):
        if slot < 0:
            site = next(site for site, after in table.history if int(after[row, patch]) < 0)
            patches.append(Fate("dropped", stage="vision", where=str(site)))
            continue
        into = start + origin[slot]
        if into in leaving:
            patches.append(Fate("dropped", into=into, stage="prefill", where=leaving[into]))
        else:
            patches.append(Fate("kept" if origin[slot] == patch else "merged", into=into))
    return patches


def summarise(record: Record) -> str:
    """The text of :meth:`Record.summary`."""
    lines = []
    for sample in range(record.batch_size):
        before = record.image_tokens[sample]
        counts = [layer[sample] for layer in record.vision_tokens]
        runs, layer = [], 0
        for value, group in groupby(counts):
            length = len(list(group))
            runs.append(
                f"{value} in layers {layer}-{layer + length - 1}" if length > 1 else f"{value} in layer {layer}"
            )
            layer += length
        name = f"sample {sample}: " if record.batch_size > 1 else ""
        lines.append(
            f"{name}{before} image tokens -> {record.after_vision[sample]} after the vision stage -> {', '.join(runs)}; "
            f"equivalent {record.equivalent_tokens[sample]:.1f}"
        )
        kinds = Counter(fate.kind if fate.stage is None else f"dropped by {fate.stage}" for fate in record.fate[sample])
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"
        lines.append(f"  patches: {told}; key tokens: {len(record.protected[sample])}")
        if record.cache_lengths:
            entries = [layer[sample] for layer in record.cache_lengths]
            lines.append(f"  cache entries per layer: {min(entries):g} to {max(entries):g}, {sum(entries):g} in all")
    return "\n".join(lines)
