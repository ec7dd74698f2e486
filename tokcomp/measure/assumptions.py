"""What is assumed where a strategy's counts depend on the image: stated numbers, never made up by a dry run.

An assumption is a number of tokens with the reason for it:

- ``vision``: tokens of one image that are left when the vision stage is done.
- ``prefill``: vision tokens of the prompt, averaged over the language model's layers and counted at each layer's
  *output* (after its filter), as MustDrop and SparseVLM count their "192", "128" and "64 tokens".
- ``cache``: entries per layer and key/value head after the prefill.

The published settings below come with their number. MustDrop's thresholds were tuned so that an average prompt of
TextVQA comes out at 192, 128 or 64 tokens (arXiv 2411.10803). How many tokens its tower merge leaves is not published;
the default is the largest number that fits, an upper bound of the cost: all tokens, unless the mean after the filter
forbids it. It does so at 64: every layer keeps the key tokens, 8 % of what the merge leaves, so that a mean of 64 in 32
layers with the first cut after layer 2 takes a merge that leaves 462 of 576 tokens at most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokcomp.errors import ConfigurationError, suggest

__all__ = ["STAGES", "Assumption", "Assumptions", "assumptions_for"]

STAGES = ("vision", "prefill", "cache")

_MUSTDROP_TOKENS = {(0.001, 0.001): 192, (0.0012, 0.001): 128, (0.011, 0.01): 64}
"""(global, individual threshold) to the published mean of vision tokens for LLaVA-1.5-7B."""


_SPARSEVLM_TOKENS = {(13.5, 0): 192, (9, 6): 128, (0.8, 0): 64}
"""(scale, bias) to the number of vision tokens that the setting is published for (arXiv 2410.04417)."""


@dataclass(frozen=True)
class Assumption:
    """A number of tokens and why it is taken; ``given``: the caller said so."""

    tokens: float
    reason: str
    given: bool = False


@dataclass(frozen=True)
class Assumptions:
    """The assumptions of one prediction, by stage, and a sentence for each of those that were needed."""

    by_stage: dict[str, Assumption]
    used: dict[str, str] = field(default_factory=dict)

    def use(self, stage: str, strategy: Any) -> float:
        """The number assumed for ``stage``; that it was used is noted.

        Raises:
            ConfigurationError: none is there.
        """
        found = self.by_stage.get(stage)
        if found is None:
            raise ConfigurationError(
                f"how many tokens {stage} '{strategy.name}' keeps depends on the image and the prompt: run it, or say "
                f"what to assume with assume={{'{stage}': tokens}}"
            )
        self.used[stage] = f"{stage} '{strategy.name}': {found.tokens:g} tokens assumed, {found.reason}"
        return found.tokens

    def refuse_idle(self) -> None:
        """Raises ConfigurationError where the caller gave a number that nothing depends on."""
        idle = [stage for stage, number in self.by_stage.items() if number.given and stage not in self.used]
        if idle:
            raise ConfigurationError(
                f"assume names {', '.join(idle)}, but no count there depends on the content: leave it out"
            )


def assumptions_for(vision: Any, prefill: Any, *, image_tokens: int, images: int, depth: int,
                    assume: Mapping[str, float] | None = None) -> Assumptions:  # fmt: skip
    """The assumptions by stage: the caller's, else the published ones that fit the strategies' fields.

    Args:
        vision, prefill: the pipeline's strategies of these stages, or None.
        image_tokens: tokens of one image.
        images: images of the prompt; a published mean is per image, the caller's is the prompt's.
        depth: layers of the language model.
        assume: the caller's numbers by stage.

    Raises:
        ConfigurationError: ``assume`` names another stage, a number below 1, or more vision tokens than an image has.
    """
    found: dict[str, Assumption] = {}
    thresholds = (getattr(prefill, "global_threshold", None), getattr(prefill, "individual_threshold", None))
    if getattr(prefill, "name", None) == "mustdrop" and thresholds in _MUSTDROP_TOKENS:
        tokens = _MUSTDROP_TOKENS[thresholds] * images
        found["prefill"] = Assumption(tokens, f"the mean published for thresholds {thresholds[0]}, {thresholds[1]}")
    by_rank = getattr(prefill, "scale", None), getattr(prefill, "bias", None)
    if getattr(prefill, "name", None) == "sparsevlm" and by_rank in _SPARSEVLM_TOKENS:
        tokens = _SPARSEVLM_TOKENS[by_rank] * images
        found["prefill"] = Assumption(tokens, f"the mean published for scale {by_rank[0]:g}, bias {by_rank[1]:g}")
    for stage, value in (assume or {}).items():
        if stage not in STAGES:
            raise ConfigurationError(f"no stage '{stage}' to assume counts for{suggest(stage, STAGES)} known: {STAGES}")
        if not value >= 1:
            raise ConfigurationError(f"assumed {stage} tokens must be at least 1, not {value}")
        if stage == "vision" and value > image_tokens:
            raise ConfigurationError(f"{value} vision tokens are assumed to be left of {image_tokens}")
        found[stage] = Assumption(value, "as given", given=True)
    if getattr(vision, "name", None) == "mustdrop" and "vision" not in found:
        most = image_tokens
        if "prefill" in found:
            most = _most_after_merging(vision, prefill, image_tokens, found["prefill"].tokens / images, depth)
        found["vision"] = Assumption(most, "the most that can be (what the tower's merge leaves is not published)")
    return Assumptions(found)


def _most_after_merging(vision: Any, prefill: Any, image_tokens: int, mean: float, depth: int) -> int:
    """The most tokens of an image that fit a mean over the layers' outputs: those before the first cut put out all of
    them, the others at least the key tokens."""
    first = prefill.acts_after(depth)[0]
    key_ratio = vision.key_ratio if prefill.respects_protected else 0

    def fits(left: int) -> bool:
        return first * left + (depth - first) * max(1, math.ceil(key_ratio * left)) <= mean * depth

    return max((left for left in range(1, image_tokens + 1) if fits(left)), default=image_tokens)
