"""Where the shipped files of the embedded model lie."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""Directory of the model, its processor, scores and model card."""

HARD_WEIGHTS = Path(__file__).parent / "hard" / "weights"
"""The model for the hard scenes."""

EMBEDDED = {"tiny": WEIGHTS, "tiny-hard": HARD_WEIGHTS}
"""Folders of the shipped models by name."""
