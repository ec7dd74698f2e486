"""Score a trained model on held-out questions: ``python -m tokcomp.embedded.evaluate``.

Writes ``scores.json`` and, from it, ``MODEL_CARD.md`` next to the weights.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from tokcomp.embedded.card import write_card
from tokcomp.embedded.dataset import SceneQuestion, prompt, question_set
from tokcomp.embedded.hard.card import write_hard_card
from tokcomp.embedded.hard.dataset import HardQuestion, hard_question_set
from tokcomp.embedded.load import load_model, load_processor
from tokcomp.embedded.paths import EMBEDDED
from tokcomp.embedded.questions import BACKGROUND_KINDS, Question
from tokcomp.embedded.training.dropping import CHANCE, GLYPHS_FIRST, draw_kept
from tokcomp.embedded.training.joint import answer_batch, joint_batch
from tokcomp.embedded.training.packing import KIND_NAMES

BATCH = 32
_BACKGROUND_KEPT = 100
BUDGETS = (72, 36, 16, 8)


@torch.inference_mode()
def answers(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, items: Sequence[SceneQuestion | HardQuestion]
) -> list[str]:
    """What the model says to every question, by greedy generation in batches."""
    said = []
    for first in tqdm(range(0, len(items), BATCH), desc="generate", mininterval=10):
        part = items[first : first + BATCH]
        inputs = processor(
            images=[item.image for item in part],
            text=[prompt(item.question) for item in part],
            padding=True,
            return_tensors="pt",
        )
        output = model.generate(**inputs)
        said += processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in said]


def accuracy_per_kind(items: Sequence[SceneQuestion | HardQuestion], right: list[bool]) -> dict[str, dict[str, float]]:
    """Number and share of right answers per kind."""
    hits = defaultdict(list)
    for item, hit in zip(items, right, strict=True):
        hits[item.kind].append(hit)
    return {kind: {"n": len(h), "accuracy": round(float(np.mean(h)), 4)} for kind, h in hits.items()}


def summary(items: list[SceneQuestion], right: list[bool]) -> dict[str, Any]:
    """Accuracy over all questions, over those about glyphs, and per kind."""
    about_glyphs = [hit for item, hit in zip(items, right, strict=True) if item.kind not in BACKGROUND_KINDS]
    return {
        "overall": round(float(np.mean(right)), 4),
        "without_photo": round(float(np.mean(about_glyphs)), 4),
        "kinds": accuracy_per_kind(items, right),
    }


def background_patches(items: list[SceneQuestion], rng: np.random.Generator) -> np.ndarray:
    """Patches (n, k) without any glyph, at most 100 of them by chance and as many in every scene."""
    free = [np.flatnonzero(item.scene.obj.reshape(-1) < 0) for item in items]
    number = min(_BACKGROUND_KEPT, *map(len, free))
    return np.stack([np.sort(rng.choice(patches, number, replace=False)) for patches in free])


@torch.inference_mode()
def right_when_keeping(
    model: LlavaForConditionalGeneration, items: list[SceneQuestion], kept: np.ndarray
) -> list[bool]:
    """Whether each whole answer is right when the model sees the patches ``kept`` (n, k) alone.

    Kept tokens close ranks. Answers are teacher-forced, which finds the same ones right as greedy
    generation does.
    """
    right = []
    for first in range(0, len(items), BATCH):
        part = items[first : first + BATCH]
        rows = [[(KIND_NAMES.index(item.kind), Question(item.question, item.answer))] for item in part]
        batch = joint_batch([item.scene for item in part], rows, kept[first : first + BATCH], np.ones(len(part), bool))
        right += answer_batch(model, batch).right
    return right


def score(model: LlavaForConditionalGeneration, processor: LlavaProcessor, n: int, seed: int) -> dict[str, Any]:
    """All figures of the model card."""
    items = question_set(n, seed=seed)
    started = time.monotonic()
    said = answers(model, processor, items)
    seconds = time.monotonic() - started
    right = [text == item.answer for text, item in zip(said, items, strict=True)]
    rng = np.random.default_rng(seed)
    drops = {"background only": right_when_keeping(model, items, background_patches(items, rng))}
    scenes = [item.scene for item in items]
    for name, mix in (("random", CHANCE), ("glyphs first", GLYPHS_FIRST)):
        for number in BUDGETS:
            kept = draw_kept(scenes, rng, number, mix)
            drops[f"{name} {number}"] = right_when_keeping(model, items, kept)
    return {
        "split": "test",
        "seed": seed,
        "n": n,
        "seconds_per_batch_of_32": round(seconds / n * BATCH, 3),
        **summary(items, right),
        "dropped": {name: summary(items, hits) for name, hits in drops.items()},
    }


def score_hard(model: LlavaForConditionalGeneration, processor: LlavaProcessor, n: int, seed: int) -> dict[str, Any]:
    """The figures of the hard scenes' model card."""
    items = hard_question_set(n, seed=seed)
    started = time.monotonic()
    said = answers(model, processor, items)
    seconds = time.monotonic() - started
    right = [text == item.answer for text, item in zip(said, items, strict=True)]
    figures = {"overall": round(float(np.mean(right)), 4), "kinds": accuracy_per_kind(items, right)}
    return {"split": "test", "seed": seed, "n": n, "seconds": round(seconds, 1), **figures}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tokcomp.embedded.evaluate", description=__doc__)
    parser.add_argument("--model", choices=tuple(EMBEDDED), default="tiny", help="which embedded model")
    parser.add_argument("--weights", type=Path, help="directory of the model; by default the shipped one")
    parser.add_argument("--n", type=int, default=1000, help="number of questions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    chosen = [] if options.model == "tiny" else [f"--model={options.model}"]
    words = [*chosen, f"--n={options.n}", f"--seed={options.seed}", f"--threads={options.threads}"]
    command = shlex.join(["python", "-m", "tokcomp.embedded.evaluate", *words])
    weights = options.weights or EMBEDDED[options.model]
    make, write = (score, write_card) if options.model == "tiny" else (score_hard, write_hard_card)
    figures = make(load_model(directory=weights), load_processor(weights), options.n, options.seed)
    (weights / "scores.json").write_text(json.dumps({"command": command, **figures}, indent=2) + "\n")
    write(weights)
    return 0


if __name__ == "__main__":
    sys.exit(main())
