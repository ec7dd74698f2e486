"""The table of cache policies on long answers at equal bytes, from the committed records of `docs/long_answers.py`."""

from __future__ import annotations

import json
import random
from pathlib import Path
from statistics import fmean
from typing import Any

OURS = "output_aware"


def table(folder: Path) -> str:
    """Accuracy of every policy at every share, and its difference from ours on the same questions."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    parts = []
    for benchmark in sorted({record["benchmark"] for record in records}):
        own = [record for record in records if record["benchmark"] == benchmark]
        dense = next(record for record in own if record["line"] == "dense")
        parts.append(f"`benchmark={benchmark}`, {dense['samples']} questions, answers of {dense['new_tokens']:.1f} tokens; the "
                     f"dense model answers {dense['accuracy']:.1%} of them.")  # fmt: skip
        for share in sorted({record["share"] for record in own} - {100}, reverse=True):
            parts.append(_share([record for record in own if record["share"] == share], share))
    return "\n\n".join(parts)


def _share(records: list[dict[str, Any]], share: int) -> str:
    ours = next(record for record in records if record["line"] == OURS)
    lines = [f"At {share} % of the dense bytes:", "",
             "| policy | bytes | accuracy | like the dense answer | accuracy minus `output_aware` (95 % interval) |",
             "|---|---:|---:|---:|---:|"]  # fmt: skip
    for record in sorted(records, key=lambda record: -record["accuracy"]):
        low, high = _difference(record["scores"], ours["scores"])
        against = "" if record is ours else f"{record['accuracy'] - ours['accuracy']:+.1%} ({low:+.1%} to {high:+.1%})"
        name = f"**{record['line']}**" if record is ours else record["line"]
        lines.append(
            f"| {name} | {record['bytes']:.1%} | {record['accuracy']:.1%} | {record['agreement']:.1%} | {against} |"
        )
    better, worse = _verdict(records, ours)
    lines += [
        "",
        f"- Worse than `output_aware`, with the whole interval below zero: {better}.",
        f"- Better, with the whole interval above zero: {worse}.",
    ]
    return "\n".join(lines)


def _verdict(records: list[dict[str, Any]], ours: dict[str, Any]) -> tuple[str, str]:
    ends = {record["line"]: _difference(record["scores"], ours["scores"]) for record in records if record is not ours}
    better = [name for name, (_, high) in ends.items() if high < 0]
    worse = [name for name, (low, _) in ends.items() if low > 0]
    return "; ".join(better) or "none", "; ".join(worse) or "none"


def _difference(scores: list[float], ours: list[float], draws: int = 2000) -> tuple[float, float]:
    """95 % interval of the mean difference, by drawing questions anew (paired bootstrap, always the same draws)."""
    differences = [one - other for one, other in zip(scores, ours, strict=True)]
    rng = random.Random(0)
    means = sorted(fmean(rng.choices(differences, k=len(differences))) for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws) - 1]
