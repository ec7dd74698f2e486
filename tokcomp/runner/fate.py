"""Follows every image patch from the tower to the last layer, and puts it into words."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

from tokcomp.runner.images import Images
from tokcomp.runner.request import Request
from tokcomp.types import Site

if TYPE_CHECKING:
    from tokcomp.runner.trace import Fate, PerSample, Record

__all__ = ["fates", "summarise"]


def fates(request: Request, kept: tuple[PerSample, ...]) -> list[list[Fate]]:
    """For every sample the fate of each of its placeholders."""
    return [_of_sample(request, sample, _leaving_layers(kept, sample)) for sample in range(request.batch_size)]


def _leaving_layers(kept: tuple[PerSample, ...], sample: int) -> dict[int, int]:
    """Placeholder index -> the layer after which it left, for those that were dropped in the prefill."""
    leaving: dict[int, int] = {}
    for layer in range(1, len(kept)):
        if kept[layer] is not kept[layer - 1]:
            now = set(kept[layer][sample].tolist())
            leaving.update((index, layer - 1) for index in kept[layer - 1][sample].tolist() if index not in now)
    return leaving


def _homes(request: Request, sample: int) -> dict[int, dict[int, int]]:
    """Layer after which tokens were merged -> placeholder index -> that of the token it was merged into."""
    origin = request.prompt.origin[sample].tolist()
    return {
        layer: {origin[column]: origin[home] for column, home in enumerate(row) if home != column}
        for layer, row in ((layer, homes[sample].tolist()) for layer, homes in request.merges.items())
    }


def _of_sample(request: Request, sample: int, leaving: dict[int, int]) -> list[Fate]:
    from tokcomp.runner.trace import Fate

    places = _placeholders(request, sample)
    at = {place: index for index, place in enumerate(places)}
    rows = {call: _Rows(request.images[call]) for call, _ in at}
    homes = _homes(request, sample)
    patches = []
    for index, (call, unit) in enumerate(places):
        home, site = (unit, None) if unit < 0 else rows[call].home(unit)
        if home is None:
            patches.append(Fate("dropped", stage="vision", where=str(site)))
            continue
        into = index if unit < 0 else at[call, home]
        while into in leaving and into in homes.get(leaving[into], {}):
            into = homes[leaving[into]][into]
        if into in leaving:
            patches.append(Fate("dropped", into=into, stage="prefill", where=leaving[into]))
        else:
            patches.append(Fate("kept" if into == index else "merged", into=into))
    return patches


def _placeholders(request: Request, sample: int) -> list[tuple[int, int]]:
    """The tower call and the unit there (-1: a separator) of each placeholder of a sample."""
    prompt = request.prompt
    if prompt.unit is None or prompt.call is None or not request.placeholders[sample]:
        return []
    held = prompt.call[sample] >= 0
    return list(zip(prompt.call[sample][held].tolist(), prompt.unit[sample][held].tolist(), strict=True))


class _Rows:
    """A tower call's units, numbered row after row."""

    def __init__(self, table: Images) -> None:
        self.source, self.origin = table.source.tolist(), table.origin.tolist()
        self.history = [(site, after.tolist()) for site, after in table.history]
        self.starts = list(accumulate(table.units, initial=0))

    def home(self, unit: int) -> tuple[int | None, Site | None]:
        """The unit at which the token stands that holds ``unit``; or None and where it was dropped."""
        row = bisect_right(self.starts, unit) - 1
        patch = unit - self.starts[row]
        slot = self.source[row][patch]
        if slot < 0:
            return None, next(site for site, after in self.history if after[row][patch] < 0)
        return self.starts[row] + self.origin[row][slot], None


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
