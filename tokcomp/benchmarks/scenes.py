"""The benchmark of the embedded model: coloured handwritten digits over photos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from tokcomp.benchmarks.base import Benchmark, Sample
from tokcomp.errors import ConfigurationError, suggest

__all__ = ["Scenes"]


class Scenes(Benchmark):
    """Questions about scenes that are composed on the fly from images inside scikit-learn and scikit-image.

    An answer is right when its words are the expected ones, in order; case, punctuation at the ends of words and spaces do
    not count. The question about the photo is no part of the headline: any background patch answers it, so that it
    rewards random dropping.

    Attributes:
        split: ``train`` scenes share neither a glyph nor a photo region with ``test`` scenes.
        kinds: names of question kinds, which take turns; None: all of them.
    """

    name: ClassVar[str] = "scenes"

    split: Literal["train", "test"] = Field(default="test", description="which glyphs and photo regions")
    kinds: tuple[str, ...] | None = Field(default=None, min_length=1, description="question kinds; null: all of them")

    @field_validator("kinds")
    @classmethod
    def _known(cls, kinds: tuple[str, ...] | None) -> tuple[str, ...] | None:
        from tokcomp.embedded.questions import KINDS

        for kind in kinds or ():
            if kind not in KINDS:
                known = tuple(KINDS)
                raise ValueError(f"unknown question kind '{kind}'{suggest(kind, known)} known: {', '.join(known)}")
        return kinds

    def load(self) -> Sequence[Sample]:
        try:
            from tokcomp.embedded.dataset import question_set

            questions = question_set(self.samples, split=self.split, seed=self.seed, kinds=self.kinds)
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"benchmark 'scenes' needs {error.name}, which is not installed: pip install 'tokcomp[demo]'"
            ) from error
        return [Sample(item.id, (item.image,), item.question, item.answer, item.kind) for item in questions]

    def score(self, prediction: str, sample: Sample) -> float:
        return float(same_words(prediction, sample.answer))

    def headline(self, kind: str) -> bool:
        from tokcomp.embedded.questions import BACKGROUND_KINDS

        return kind not in BACKGROUND_KINDS


def same_words(one: str, other: str) -> bool:
    """Whether two texts have the same words in the same order, whatever their case, spaces and punctuation."""
    return _words(one) == _words(other)


def _words(text: str) -> list[str]:
    stripped = (word.strip(".,;:!?\"'()") for word in text.casefold().split())
    return [word for word in stripped if word]
