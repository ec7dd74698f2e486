"""The model card, written from the files next to the weights and never by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokcomp.embedded.photos import PHOTOS
from tokcomp.embedded.questions import BACKGROUND_KINDS

_INTRODUCTION = """\
# The embedded model

A LLaVA of {parameters:.1f} million parameters (CLIP tower, two-layer projector, Llama; 128 wide), trained
from scratch on a CPU, for benchmarks and tests of visual token compression that need no download.
It answers questions about scenes: coloured handwritten digits over a dimmed photo, 96x96 pixels,
144 visual tokens.

## Data

Glyphs are the handwritten digits bundled with scikit-learn (`load_digits`, from the UCI optical
recognition data set, CC BY 4.0). Photos are bundled with scikit-learn and scikit-image. Train and
test scenes share neither a glyph nor a region of a photo.

"""

_LIMITS = """\
## Limits

- It knows its scenes and nothing else: digits 16 to 20 pixels high near corners of the patch
  grid, eight colours, eight photos, the templates of its questions, a vocabulary of about a hundred words.
- Word embeddings are fixed rows of an orthogonal matrix and attention starts from a designed state
  (local heads in the tower, word-to-code heads in the language model); all other weights are trained.
- The tower was frozen while the language model learned to read it, so that background patches do
  not come to describe the glyphs. Questions about the photo are the exception that any background
  patch answers; they are scored apart.
"""


def _scores_table(scores: dict[str, Any]) -> str:
    lines = ["| kind | questions | accuracy |", "|---|---|---|"]
    for kind, entry in scores["kinds"].items():
        note = " (background)" if kind in BACKGROUND_KINDS else ""
        lines.append(f"| {kind}{note} | {entry['n']} | {entry['accuracy']:.3f} |")
    lines.append(f"| all but background | | {scores['without_photo']:.3f} |")
    lines.append(f"| all | {scores['n']} | {scores['overall']:.3f} |")
    return "\n".join(lines)


def _drops_table(scores: dict[str, Any]) -> str:
    lines = ["| tokens kept | all | all but background |", "|---|---|---|"]
    for name, entry in scores["dropped"].items():
        lines.append(f"| {name} | {entry['overall']:.3f} | {entry['without_photo']:.3f} |")
    return "\n".join(lines)


def _training_table(training: dict[str, Any]) -> str:
    lines = ["| stage | steps | scenes per step | peak rate | last loss |", "|---|---|---|---|---|"]
    for name, entry in training["stages"].items():
        schedule, loss = entry["schedule"], entry["last"]["loss"]
        lines.append(f"| {name} | {schedule['steps']} | {schedule['batch']} | {schedule['rate']:g} | {loss:.3f} |")
    return "\n".join(lines)


def photo_table() -> str:
    """Every photo with its licence and source."""
    photos = [f"| {p.name} | {p.package}/{p.file} | {p.licence} | {p.source} |" for p in PHOTOS]
    return "\n".join(["| photo | file | licence | source |", "|---|---|---|---|", *photos])


def parameters_of(directory: Path) -> int:
    """How many numbers the weights in ``directory`` are."""
    from safetensors import safe_open

    with safe_open(directory / "model.safetensors", framework="pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118, not a dict


def write_card(directory: Path) -> None:
    """Write ``MODEL_CARD.md`` from ``scores.json`` and ``training.json`` of ``directory``."""
    scores = json.loads((directory / "scores.json").read_text())
    training = json.loads((directory / "training.json").read_text())
    parts = [
        _INTRODUCTION.format(parameters=parameters_of(directory) / 1e6) + photo_table(),
        f"## Training\n\n`{training['command']}`\n\n{_training_table(training)}",
        f"## Scores\n\nExact match on held-out questions, every one on its own scene: "
        f"`{scores['command']}`\n\n{_scores_table(scores)}",
        "## What dropped tokens cost\n\nThe same questions with part of the 144 tokens; kept tokens close "
        f'ranks. "Background only" keeps up to 100 patches without a glyph.\n\n{_drops_table(scores)}',
        _LIMITS,
    ]
    (directory / "MODEL_CARD.md").write_text("\n\n".join(parts))
