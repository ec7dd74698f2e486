"""The benchmark of the second embedded model: questions that need depth, answers that need the image while they are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from tokcomp.benchmarks.base import Benchmark, Sample
from tokcomp.benchmarks.scenes import same_words
from tokcomp.errors import ConfigurationError, suggest

__all__ = ["ScenesHard"]


class ScenesHard(Benchmark):
    """Scenes of three to eight coloured digits in a grid of nine cells, with repeats; made from images inside scikit-learn
    and scikit-image.

    Questions take two lookups or more (what stands next to what, sums, comparisons), or a description of 12 to 30 tokens. An
    answer is right when its words are the expected ones, in order.

    Attributes:
        split: ``train`` scenes share neither a glyph nor a photo region with ``test`` scenes.
        kinds: names of question kinds, which take turns; None: all of them.
    """

    name: ClassVar[str] = "scenes-hard"

    samples: int = Field(default=240, ge=1, description="number of questions")
    batch_size: int = Field(default=40, ge=1, description="prompts per forward pass")
    max_new_tokens: int = Field(default=32, ge=1, description="longest answer, in tokens")
    split: Literal["train", "test"] = Field(default="test", description="which glyphs and photo regions")
    kinds: tuple[str, ...] | None = Field(default=None, min_length=1, description="question kinds; null: all of them")

    @field_validator("kinds")
    @classmethod
    def _known(cls, kinds: tuple[str, ...] | None) -> tuple[str, ...] | None:
        from tokcomp.embedded.hard.questions import ALL_KINDS

        for kind in kinds or ():
            if kind not in ALL_KINDS:
                known = tuple(ALL_KINDS)
                raise ValueError(f"unknown question kind '{kind}'{suggest(kind, known)} known: {', '.join(known)}")
        return kinds

    def load(self) -> Sequence[Sample]:
        from tokcomp.embedded.hard.dataset import hard_question_set

        try:
            questions = hard_question_set(self.samples, split=self.split, seed=self.seed, kinds=self.kinds)
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"benchmark 'scenes-hard' needs {error.name}, which is not installed: pip install 'tokcomp[demo]'"
            ) from error
        return [Sample(item.id, (item.image,), item.question, item.answer, item.kind) for item in questions]

    def score(self, prediction: str, sample: Sample) -> float:
        return float(same_words(prediction, sample.answer))
