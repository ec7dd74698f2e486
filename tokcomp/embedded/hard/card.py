"""The model card of the hard scenes' model, written from the files next to the weights and never by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokcomp.embedded.card import parameters_of, photo_table
from tokcomp.embedded.hard.questions import LONG_KINDS

_INTRODUCTION = """\
# The model for `scenes-hard`

A LLaVA of {parameters:.1f} million parameters (CLIP tower 128 wide, 8 layers; two-layer projector; Llama 192 wide,
10 layers), trained from scratch, for `benchmark=scenes-hard`: three to eight coloured handwritten digits in a grid of nine
cells over a dimmed photo, digits and colours repeating, 96x96 pixels, 144 visual tokens. Questions take two lookups or
more, or a description of 12 to 30 tokens.

## What is built in

- Every trait of a patch (colour, cell, row, column, glyph or not, digit) has a few dimensions of its own in the language
  model's width. The first two layers have zero weights on all of these, and the layers before the sixth on those of the
  digit: they cannot read them. So nothing is looked up in the first layers, and no digit before the middle of the model. The
  code that runs is `LlavaForConditionalGeneration`, unmodified.
- Three of the six heads of each layer behind the blind ones start as lookups by colour, digit or place; word embeddings are
  fixed rows of an orthogonal matrix. All other weights are trained.
- In training, the attention of the last prompt token in the layers from the fifth on is drawn lightly towards the
  patches that show a glyph (weight 0.05). Without a reason to, such a small model need not look anywhere in particular.
- The tower was frozen while the language model learned, and no visual token was dropped inside the language model.
  Before it, 35 % of the training scenes lacked some tokens, background first.

## Data

Glyphs are the handwritten digits bundled with scikit-learn (`load_digits`, from the UCI optical
recognition data set, CC BY 4.0). Photos are bundled with scikit-learn and scikit-image. Train and
test scenes share neither a glyph nor a region of a photo.

"""

_LIMITS = """\
## Limits

- It knows its scenes and nothing else: digits 16 to 20 pixels high near the centres of nine cells, eight colours, the
  templates of its questions, a vocabulary of {words} words. Any other word is unknown to it.
- It does not answer the questions of `benchmark=scenes`; the model `tiny` does.
- Where it looks is partly designed, see above: what a diagnosis on it shows about a strategy is how the strategy copes
  with lookups in the middle layers and while writing, not how another model distributes them.
"""


def _training(record: dict[str, Any]) -> str:
    lines = ["| stage | steps | scenes per step | peak rate | last loss |", "|---|---|---|---|---|"]
    for name, entry in record["stages"].items():
        schedule, loss = entry["schedule"], entry["last"]["loss"]
        lines.append(f"| {name} | {schedule['steps']} | {schedule['batch']} | {schedule['rate']:g} | {loss:.3f} |")
    told = f"`{record['command']}` on {record['device']}, torch {record['torch']}"
    if "stopped_at" in record:
        told += f"; stopped at step {record['stopped_at']} of the last stage, whose checkpoint these weights are"
    return f"{told}.\n\n" + "\n".join(lines)


def _log(lines: list[dict[str, Any]], stage: str, names: dict[str, str]) -> str:
    """Held-out figures over the steps of a stage."""
    rows = [line for line in lines if line["stage"] == stage and "held_out" in line]
    table = [f"| step | {' | '.join(names.values())} |", "|---|" + "---|" * len(names)]
    for row in rows:
        figures = [f"{row['held_out'].get(name, float('nan')):.3f}" for name in names]
        table.append(f"| {row['step']} | {' | '.join(figures)} |")
    return "\n".join(table)


def _scores(scores: dict[str, Any]) -> str:
    lines = ["| kind | questions | accuracy |", "|---|---|---|"]
    for kind, entry in scores["kinds"].items():
        note = " (long)" if kind in LONG_KINDS else ""
        lines.append(f"| {kind}{note} | {entry['n']} | {entry['accuracy']:.3f} |")
    return "\n".join([*lines, f"| all | {scores['n']} | {scores['overall']:.3f} |"])


def write_hard_card(directory: Path) -> None:
    """Write ``MODEL_CARD.md`` from ``scores.json``, ``training.json`` and ``training.jsonl`` of ``directory``."""
    from tokcomp.embedded.hard.vocabulary import WORDS

    scores = json.loads((directory / "scores.json").read_text())
    lines = [json.loads(line) for line in (directory / "training.jsonl").read_text().splitlines()]
    vision = {
        "glyph_digit": "digit of a glyph",
        "digit": "digit of a patch",
        "colour": "colour",
        "layer": "glyph or not",
    }
    language = {"hard_mean": "mean over kinds", "neighbour_digit": "neighbour_digit", "count_larger": "count_larger"}
    language["describe_rows"] = "describe_rows"
    parts = [
        _INTRODUCTION.format(parameters=parameters_of(directory) / 1e6) + photo_table(),
        f"## Training\n\n{_training(json.loads((directory / 'training.json').read_text()))}",
        f"On held-out scenes, the tower:\n\n{_log(lines, 'vision', vision)}",
        f"and the language model:\n\n{_log(lines, 'language', language)}",
        f"## Scores\n\nExact match on held-out questions, every one on its own scene: `{scores['command']}`\n\n"
        f"{_scores(scores)}",
        _LIMITS.format(words=len(WORDS)),
    ]
    (directory / "MODEL_CARD.md").write_text("\n\n".join(parts))
