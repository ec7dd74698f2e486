"""How many tokens a pipeline lets through each part of a model, told without weights and without an image.

The pipeline's own strategies are asked, on made-up content of the right sizes (:mod:`tokcomp.measure.probes`), how many
tokens they keep. Where that number depends on the content, it is not guessed: an assumption has to be there
(:mod:`tokcomp.measure.assumptions`), and the result says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from tokcomp.errors import ConfigurationError
from tokcomp.measure.assumptions import Assumptions, assumptions_for
from tokcomp.measure.execution import filter_scores, policy_scores, summing_layers
from tokcomp.measure.probes import CONTENTS, Alive
from tokcomp.measure.schedule_cache import cache_schedule
from tokcomp.measure.schedule_stages import Prompt, States, prefill_schedule, vision_schedule
from tokcomp.measure.shape import ModelShape
from tokcomp.measure.workload import ImageWork, ScoreWork, Workload
from tokcomp.stages import CachePolicy, PrefillFilter, VisionReducer

__all__ = ["Expected", "Stages", "expected_workload"]


class Stages(Protocol):
    """A pipeline, as far as it is looked at: three strategies or None."""

    @property
    def vision(self) -> VisionReducer | None: ...
    @property
    def prefill(self) -> PrefillFilter | None: ...
    @property
    def cache(self) -> CachePolicy | None: ...


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a pipeline is expected to do to one prompt.

    Attributes:
        workload: the counts, for :func:`tokcomp.measure.flops.count`.
        after_vision: vision tokens of the prompt that the language model gets.
        vision_tokens: vision tokens that enter each layer; ``leaving`` those that leave it.
        cache_lengths: entries of each layer's cache after the prefill (mean over heads where heads differ).
        assumptions: one sentence for every number that is an assumption and no consequence of the strategies' fields.
    """

    workload: Workload
    after_vision: float
    vision_tokens: tuple[float, ...]
    leaving: tuple[float, ...]
    cache_lengths: tuple[float, ...]
    assumptions: tuple[str, ...] = ()

    @property
    def equivalent_tokens(self) -> float:
        """Mean over the layers of the vision tokens that enter them: what the layers really compute."""
        return sum(self.vision_tokens) / len(self.vision_tokens)

    @property
    def published_tokens(self) -> float:
        """Mean over the layers of the vision tokens that leave them: how MustDrop and SparseVLM count."""
        return sum(self.leaving) / len(self.leaving)


def expected_workload(shape: ModelShape, pipeline: Stages | None, *, image_tokens: int, text_tokens: int, images: int = 1,
                      new_tokens: int = 1, text_before: int = 0, grid: tuple[int, int] | None = None,
                      assume: Mapping[str, float] | None = None, summed: bool = False) -> Expected:  # fmt: skip
    """The counts of one prompt under a pipeline.

    Which tower blocks run and which attention scores are computed follows the runner
    (:mod:`tokcomp.measure.execution`).

    Args:
        shape: the model.
        pipeline: its strategies; None: the unmodified model.
        image_tokens: vision tokens that one image contributes to the prompt before compression.
        text_tokens: text tokens of the prompt.
        images: images in the prompt, of equal size; 0 for a plain language model. A high-resolution image counts as its
            tiles, without the newline tokens and the unpadding of LLaVA-NeXT.
        new_tokens: tokens to generate, the prefill's own included.
        text_before: text tokens before the first image; those after it are the query rows of text-guided filters.
        grid: rows and columns of an image's patches; None: the model's own, or a square.
        assume: numbers by stage for strategies whose counts depend on the content.
        summed: the attention gives the sums over a prompt's rows by itself, as on a CPU, so that a cache policy that looks at
            them costs no second product.

    Raises:
        ConfigurationError: a strategy's counts depend on the content and no number is assumed; a number is given that
            nothing depends on, or that cannot be; sizes that contradict each other.
        UnsupportedError: a reducer inside a tower whose patches are merged afterwards (Qwen-VL).
    """
    if not 0 <= text_before <= text_tokens:
        raise ConfigurationError(f"text_before={text_before} is not within the {text_tokens} text tokens")
    vision, prefill, cache = (getattr(pipeline, stage, None) for stage in ("vision", "prefill", "cache"))
    known = assumptions_for(
        vision, prefill, image_tokens=image_tokens, images=images, depth=shape.layers, assume=assume
    )
    prompt = Prompt(text_before, image_tokens * images, text_tokens - text_before)

    work, scores, history = _read(shape, pipeline, prompt, images, grid, known)
    after_prefill, steps = cache_schedule(shape, cache, prompt, history, new_tokens, known)
    known.refuse_idle()

    counts = tuple(states[0].count for states in history)
    layer_tokens = tuple(text_tokens + entering for entering in counts[:-1])
    scores += filter_scores(prefill if images else None, layer_tokens, prompt.after)
    attended = () if cache is None or not summed else summing_layers(cache, shape.layers)
    scores += policy_scores(cache, layer_tokens, steps, prompt.after if images else text_tokens, attended)
    return Expected(
        workload=Workload(
            images=work, text_tokens=text_tokens, layer_tokens=layer_tokens, decode_lengths=steps, scores=scores
        ),
        after_vision=counts[0],
        vision_tokens=counts[:-1],
        leaving=counts[1:],
        cache_lengths=after_prefill,
        assumptions=tuple(known.used.values()),
    )


def _read(shape: ModelShape, pipeline: Stages | None, prompt: Prompt, images: int, grid: tuple[int, int] | None,
          known: Assumptions) -> tuple[tuple[ImageWork, ...], tuple[ScoreWork, ...], tuple[States, ...]]:  # fmt: skip
    """The images through the tower and the prompt through the layers: the work and the scores of the tower, and the vision
    tokens left before each layer and after the last one."""
    if not images:
        return (), (), ((Alive.all(0),) * len(CONTENTS),) * (shape.layers + 1)
    vision, prefill = getattr(pipeline, "vision", None), getattr(pipeline, "prefill", None)
    each = prompt.placeholders // images
    image, encoded, scores = vision_schedule(shape, vision, each, grid, known)
    states = tuple(state.repeated(images, each) for state in encoded)
    return (image,) * images, scores * images, prefill_schedule(shape, prefill, states, prompt, known)
