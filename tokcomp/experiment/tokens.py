"""How many tokens each sample had in every part of the model, and the work that this made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokcomp.measure.record import workload_from_record
from tokcomp.measure.shape import ModelShape
from tokcomp.measure.workload import Workload, dense_workload, growing_lengths
from tokcomp.pipeline import Pipeline
from tokcomp.runner.trace import Record

__all__ = ["SampleTokens", "dense_sample", "recorded_samples"]


@dataclass(frozen=True, kw_only=True)
class SampleTokens:
    """One sample.

    Attributes:
        image_tokens: image placeholders of the prompt.
        after_vision: vision tokens that the vision stage left.
        vision_tokens, sequence_tokens: vision tokens, and all tokens, that enter each language-model layer.
        cache_lengths: entries of each layer's cache after the prefill, mean over heads.
        new_tokens: tokens of the answer, its end included.
    """

    image_tokens: int
    after_vision: int
    vision_tokens: tuple[int, ...]
    sequence_tokens: tuple[int, ...]
    cache_lengths: tuple[float, ...]
    new_tokens: int

    @property
    def equivalent_tokens(self) -> float:
        """Mean over the layers of the vision tokens that enter them."""
        return sum(self.vision_tokens) / len(self.vision_tokens)


def dense_sample(shape: ModelShape, *, image_tokens: int, prompt_tokens: int, images: int,
                 new_tokens: int) -> tuple[SampleTokens, Workload]:  # fmt: skip
    """The sample in the model without tokcomp; ``image_tokens`` are those of all its images, which are of equal size."""
    tokens = SampleTokens(
        image_tokens=image_tokens,
        after_vision=image_tokens,
        vision_tokens=(image_tokens,) * shape.layers,
        sequence_tokens=(prompt_tokens,) * shape.layers,
        cache_lengths=(prompt_tokens,) * shape.layers,
        new_tokens=new_tokens,
    )
    work = dense_workload(
        shape,
        image_tokens=image_tokens // images,
        text_tokens=prompt_tokens - image_tokens,
        images=images,
        new_tokens=new_tokens,
    )
    return tokens, work


def recorded_samples(record: Record, *, shape: ModelShape, pipeline: Pipeline, passes: int, new_tokens: Sequence[int],
                     text_rows: Sequence[int]) -> list[tuple[SampleTokens, Workload]]:  # fmt: skip
    """Every sample of a recorded batch.

    Args:
        record: what the trace holds of the prompt, read after the answer.
        shape: the model.
        pipeline: what was attached.
        passes: decoding steps that the batch took.
        new_tokens: tokens of each sample's answer, its end included: later steps only waited for the other samples.
        text_rows: text tokens of each sample after its last image.
    """
    now, read = record.cache_lengths, record.decode_lengths or ()  # read once: they are computed for the whole batch
    rows, first = record.rows_of, 0
    found = []
    works: dict[_OneSample, Workload] = {}  # many samples of a batch make the same work
    for sample, new in enumerate(new_tokens):
        if read:
            # What a step reads is what was there before it, and its own entry.
            after_prefill = tuple(layer[sample] - 1 for layer in read[0])
            decode = tuple(tuple(layer[sample] for layer in step) for step in read[: new - 1])
        else:
            # Nothing leaves in decoding: every step added one entry. A pipeline without strategies tracks no cache.
            sequence = tuple(layer[sample] for layer in record.sequence_tokens)
            after_prefill = tuple(layer[sample] - passes for layer in now) or sequence
            decode = growing_lengths(after_prefill, new)
        tokens = _tokens_of(record, sample, after_prefill, new)
        mine = slice(first, first + rows[sample])
        towers = tuple(block[mine] for block in record.tower_tokens)
        one = _OneSample(tokens, decode, towers, record.projector_tokens[mine], text_rows[sample], record.summed)
        if one not in works:
            works[one] = workload_from_record(one, shape, pipeline=pipeline, new_tokens=new, text_rows=one.text_rows)
        found.append((tokens, works[one]))
        first = mine.stop
    return found


def _tokens_of(record: Record, sample: int, after_prefill: tuple[float, ...], new_tokens: int) -> SampleTokens:
    return SampleTokens(
        image_tokens=record.image_tokens[sample],
        after_vision=record.after_vision[sample],
        vision_tokens=tuple(layer[sample] for layer in record.vision_tokens),
        sequence_tokens=tuple(layer[sample] for layer in record.sequence_tokens),
        cache_lengths=after_prefill,
        new_tokens=new_tokens,
    )


@dataclass(frozen=True)
class _OneSample:
    """A batch of one with its own number of decoding steps, in the form in which work is counted."""

    tokens: SampleTokens
    decode: tuple[tuple[float, ...], ...]
    tower_tokens: tuple[tuple[int, ...], ...]
    projector_tokens: tuple[int, ...]
    text_rows: int
    summed: tuple[int, ...]

    @property
    def sequence_tokens(self) -> list[tuple[int]]:
        return [(count,) for count in self.tokens.sequence_tokens]

    @property
    def vision_tokens(self) -> list[tuple[int]]:
        return [(count,) for count in self.tokens.vision_tokens]

    @property
    def cache_lengths(self) -> list[tuple[float]]:
        return [(count,) for count in self.tokens.cache_lengths]

    @property
    def rows_of(self) -> tuple[int]:
        return (len(self.projector_tokens),)

    @property
    def decode_lengths(self) -> list[list[tuple[float]]]:
        return [[(length,) for length in step] for step in self.decode]
