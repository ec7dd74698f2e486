"""Where the shipped files of the embedded model lie."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""Directory of the model, its processor, scores and model card."""
