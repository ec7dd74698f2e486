"""The work that a trace recorded, as a :class:`~tokcomp.measure.workload.Workload`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from tokcomp.errors import ConfigurationError
from tokcomp.measure.execution import filter_scores, image_work, policy_scores, reducer_scores
from tokcomp.measure.schedule import Stages
from tokcomp.measure.shape import ModelShape
from tokcomp.measure.workload import ImageWork, ScoreWork, Workload
from tokcomp.stages import CachePolicy

__all__ = ["TraceRecord", "workload_from_record"]

PerSample = Sequence[Any]


class TraceRecord(Protocol):
    """What is read of a trace's record (``trace.last``). Each inner sequence has one value per sample or per image.

    Attributes:
        sequence_tokens: per language-model layer and sample, text and vision tokens that enter it in the prefill.
        vision_tokens: per layer and sample, the vision tokens among them.
        cache_lengths: per layer and sample, the cache entries now (mean over heads where heads differ).
        rows_of: per sample, the number of its images.
        tower_tokens: per tower block and image (of the whole batch, in prompt order), the tokens that enter it, prefix
            included; an empty sequence where the prompt has no images.
        projector_tokens: per image, the tokens that the projector computes.

    Where they are there, two more are read: ``decode_lengths``, per decoding step, layer and sample the entries that the
    step's attention read, its own included; ``summed``, the layers whose attention gave a policy's sums by itself.
    """

    @property
    def sequence_tokens(self) -> Sequence[PerSample]: ...
    @property
    def vision_tokens(self) -> Sequence[PerSample]: ...
    @property
    def cache_lengths(self) -> Sequence[PerSample]: ...
    @property
    def rows_of(self) -> Sequence[int]: ...
    @property
    def tower_tokens(self) -> Sequence[PerSample]: ...
    @property
    def projector_tokens(self) -> PerSample: ...


def workload_from_record(record: TraceRecord, shape: ModelShape, *, sample: int = 0, pipeline: Stages | None = None,
                         new_tokens: int = 1, logits_rows: int | None = 1, text_rows: int | None = None) -> Workload:  # fmt: skip
    """The work of one sample of a recorded prompt.

    Args:
        record: the record, read after the last of ``new_tokens``.
        shape: the model.
        sample: which sample of the batch.
        pipeline: what was attached: it tells which tower blocks ran and which attention scores were computed.
        new_tokens: tokens that were generated, the prefill's own included.
        logits_rows: rows that the head computed in the prefill; None: all of them.
        text_rows: text tokens after the last image, the query rows of text-guided strategies; None: all text tokens.

    Raises:
        ConfigurationError: the cache policy shortens the cache while decoding and the record has no ``decode_lengths``,
            or it has another number of steps than ``new_tokens`` takes.
    """
    reducer, strategy, policy = (getattr(pipeline, stage, None) for stage in ("vision", "prefill", "cache"))
    layer_tokens = tuple(_plain(layer[sample]) for layer in record.sequence_tokens)
    text = layer_tokens[0] - _plain(record.vision_tokens[0][sample])
    steps = _steps(record, sample, new_tokens - 1, policy)
    images: list[ImageWork] = []
    scores: list[ScoreWork] = []
    first = sum(int(count) for count in record.rows_of[:sample])
    for image in range(first, first + int(record.rows_of[sample])):
        entering = [_plain(block[image]) for block in record.tower_tokens]
        # What leaves the last block is not recorded; only SigLIP's pooling head reads it.
        images.append(image_work(shape, reducer, [*entering, entering[-1]], _plain(record.projector_tokens[image])))
        scores += reducer_scores(shape, reducer, entering)
    looking: float = text if text_rows is None else text_rows
    scores += filter_scores(strategy, layer_tokens, looking)
    scores += policy_scores(policy, layer_tokens, steps, looking, getattr(record, "summed", ()))
    return Workload(
        images=tuple(images),
        text_tokens=text,
        layer_tokens=layer_tokens,
        decode_lengths=steps,
        logits_rows=layer_tokens[-1] if logits_rows is None else logits_rows,
        scores=tuple(scores),
    )


def _steps(record: TraceRecord, sample: int, steps: int, policy: CachePolicy | None) -> tuple[tuple[float, ...], ...]:
    recorded = getattr(record, "decode_lengths", None)
    if recorded is not None:
        if len(recorded) != steps:
            raise ConfigurationError(
                f"the record holds {len(recorded)} decoding steps, but {steps + 1} new tokens take {steps} steps"
            )
        return tuple(tuple(_plain(layer[sample]) for layer in step) for step in recorded)
    if steps > 0 and policy is not None and policy.decodes():
        raise ConfigurationError(
            f"cache '{policy.name}' shortens the cache while decoding, and the record has no decode_lengths: the FLOPs of "
            "the steps cannot be told from the last lengths alone"
        )
    last = tuple(_plain(layer[sample]) for layer in record.cache_lengths)
    return tuple(tuple(length - steps + step for length in last) for step in range(1, steps + 1))


def _plain(number: Any) -> float:
    """A recorded number (an int, a float or an element of a tensor) as a plain one, whole ones as integers."""
    value = float(number)
    return int(value) if value.is_integer() else value
