"""mkdocs hook: puts tables where a page says `<!-- generated: NAME -->`; nothing measured is typed by hand."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import ablation
import comparison
import depth
import long_answers
import performance
import scale
import support
import tables
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from tokcomp.experiment.compose import compose
from tokcomp.experiment.prediction import Prediction, PredictionConfig, predict

_MARK = re.compile(r"<!-- generated: ([\w-]+) -->")
PRESETS = ("fastv", "mustdrop-192", "mustdrop-128", "mustdrop-64")
_COMMANDS = {
    "ablation": ablation.COMMAND, "library": "make library", "long-answers": "python docs/long_answers.py",
    "scale": "make bench-sweeps", "speed-cpu": "make bench", "speed-gpu": "make bench-gpu", "support": "make support",
    "hard": "python -m benchmarks.depth",
}  # fmt: skip
"""What writes the records that a mark stands for, by the mark or its beginning; else it is ``make results``."""


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill the marks of one page."""
    if not _MARK.search(markdown):
        return markdown
    entries = tables.read(Path(config.docs_dir) / "results")
    makers = {
        "presets": lambda: tables.comparison(entries),
        "kinds": tables.kinds,
        "budgets": lambda: tables.budgets(entries),
        "inside": lambda: tables.inside(entries),
        "ablation": lambda: ablation.table(Path(config.docs_dir) / "results" / "stages"),
        "library": lambda: comparison.library(Path(config.docs_dir) / "results" / "library"),
        "long-answers": lambda: long_answers.table(Path(config.docs_dir) / "results" / "long_answers"),
        "scale": scale.measured,
        "details": lambda: tables.details(entries),
        "flops": flops,
        "support-attach": support.attached,
        "support-families": support.families,
        "support-strategies": support.strategies,
        "conventions": conventions,
        **depth.TABLES,
        **performance.tables(),
    }
    return _MARK.sub(lambda match: makers[match[1]]() or _missing(match[1]), markdown)


def _missing(mark: str) -> str:
    command = next((command for begin, command in _COMMANDS.items() if mark.startswith(begin)), "make results")
    return f"_Nothing is committed yet: `{command}` writes it._"


@cache
def _predictions() -> list[tuple[str, Prediction]]:
    choices = [f"preset={preset}" for preset in PRESETS]
    return [(choice, predict(PredictionConfig.resolve(compose([choice], config_name="flops")))) for choice in choices]


def flops() -> str:
    """What the presets cost on LLaVA-1.5-7B, by part."""
    predictions = _predictions()
    first = predictions[0][1]
    lines = ["| TFLOPs | dense | " + " | ".join(f"`{choice}`" for choice, _ in predictions) + " |",
             "|---|" + "---:|" * (len(predictions) + 1)]  # fmt: skip
    for part, dense in first.dense.by_part().items():
        costs = [dense, *(prediction.compressed.by_part()[part] for _, prediction in predictions)]
        lines.append(f"| {part} | " + " | ".join(f"{cost / 1e12:.4f}" for cost in costs) + " |")
    for name, field in (("entering a layer", "equivalent_tokens"), ("leaving a layer", "published_tokens")):
        tokens = [first.dense_tokens, *(prediction.compressed_tokens for _, prediction in predictions)]
        lines.append(f"| vision tokens {name} | " + " | ".join(f"{getattr(t, field):.4g}" for t in tokens) + " |")
    assumed = sorted({line for _, prediction in predictions for line in prediction.assumptions})
    return "\n".join([*lines, "", "What had to be assumed:", "", *(f"- {line}" for line in assumed)])


def conventions() -> str:
    """The share that each way of counting calls the reduction."""
    predictions = _predictions()
    lines = ["| counted as | what is counted | " + " | ".join(f"`{choice}`" for choice, _ in predictions) + " |",
             "|---|---|" + "---:|" * len(predictions)]  # fmt: skip
    for rows in zip(*(prediction.reductions for _, prediction in predictions), strict=True):
        saved = " | ".join(f"{row.saved:.1%}" for row in rows)
        lines.append(f"| `{rows[0].convention}` | {rows[0].meaning} | {saved} |")
    return "\n".join(lines)
