"""Draws what every strategy keeps of the same three scenes, on the embedded model: the gallery of the site.

    python docs/gallery.py                             # all of them
    python docs/gallery.py --only vision cache/snapkv  # some of them

For each strategy ``docs/images/strategies/STAGE-NAME.webp``, the picture of its page, and ``STAGE-NAME-strip.webp``, its
three small ones in the overview. ``scenes-strip.webp`` is what the model sees.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from tokcomp.embedded import question_set
from tokcomp.experiment.compose import compose
from tokcomp.experiment.config import ModelConfig, RunConfig
from tokcomp.experiment.load import LoadedModel
from tokcomp.pipeline import Pipeline
from tokcomp.registry import REGISTRIES
from tokcomp.report.figure import panels_of
from tokcomp.report.story import Story
from tokcomp.report.style import figure, styled
from tokcomp.report.view import overlay

IMAGES = Path(__file__).resolve().parent / "images" / "strategies"
SEEDS = (8, 13, 15)
SIDE = 160  # pixels of a small picture
SHOWN: dict[tuple[str, str], dict[str, Any]] = {
    ("vision", "mustdrop"): {"merge_layer": 5},
    ("vision", "tome"): {"r": 18},
    ("vision", "pitome"): {"r": 0.125},
    ("prefill", "mustdrop"): {"global_threshold": 0.011, "individual_threshold": 0.01},
    ("prefill", "fastv"): {"keep_tokens": 36},
    ("prefill", "dart"): {"keep_tokens": 36, "rounding": "exact"},
    ("prefill", "sparsevlm"): {"keep_ratios": (0.7, 0.5, 0.35, 0.25)},
    ("prefill", "uniform"): {"keep_tokens": 36},
}
"""Settings of the pictures, where the defaults, which are made for 576 patches, leave little to see of 144."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="stages (vision) or strategies (vision/tome)")
    make(parser.parse_args().only)
    return 0


def spec(stage: str, name: str) -> dict[str, Any]:
    """The pipeline of a strategy's pictures."""
    return {stage: {"name": name, **SHOWN.get((stage, name), {})}}


def make(only: Sequence[str] = ()) -> None:
    """Draw the strategies, or some of them."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    items = [question_set(1, kinds=["describe"], seed=seed)[0] for seed in SEEDS]
    images, questions = [item.image for item in items], [item.question for item in items]
    for stage, registry in REGISTRIES.items():
        for name in registry:
            if only and not {stage, f"{stage}/{name}"} & set(only):
                continue
            with tempfile.TemporaryDirectory() as folder:
                drawn = Path(folder) / "overlay.png"
                stories = overlay(images, questions, spec(stage, name), model(), drawn)
                Image.open(drawn).convert("RGB").save(IMAGES / f"{stage}-{name}.webp", quality=78, method=6)
            pipeline = Pipeline(**spec(stage, name))
            strip(
                stories, lambda story, p=pipeline: panels_of(story, p)[-1].draw, IMAGES / f"{stage}-{name}-strip.webp"
            )
            if not (IMAGES / "scenes-strip.webp").exists() or not only:
                strip(stories, lambda story, p=pipeline: panels_of(story, p)[0].draw, IMAGES / "scenes-strip.webp")
            sys.stderr.write(f"{stage}/{name}\n")


def strip(stories: Sequence[Story], drawing: Callable[[Story], Callable[[Any], Any]], out: Path) -> None:
    """The small pictures of one strategy side by side, nothing around them."""
    parts = []
    for story in stories:
        with styled():
            canvas = figure(2.0, 2.0)
            drawing(story)(canvas.add_axes((0.0, 0.0, 1.0, 1.0)))
            buffer = io.BytesIO()
            canvas.savefig(buffer, format="png", dpi=2 * SIDE / 2.0)
        parts.append(Image.open(buffer).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    joined = Image.new("RGB", (len(parts) * SIDE + (len(parts) - 1) * 8, SIDE))
    joined.putalpha(0)
    for number, part in enumerate(parts):
        joined.paste(part, (number * (SIDE + 8), 0))
    joined.save(out, quality=80, method=6)


@cache
def model() -> LoadedModel:
    """The embedded model, loaded once."""
    from tokcomp.experiment.load import load_model

    config = RunConfig.resolve(compose([]))
    return load_model(ModelConfig(), device=config.device, dtype=config.torch_dtype)


if __name__ == "__main__":
    sys.exit(main())
