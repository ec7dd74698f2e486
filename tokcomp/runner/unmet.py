"""Refuses reducers that need what a vision tower does not have, and features that are no numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tokcomp.errors import CompatibilityError, FeatureError
from tokcomp.models.adapter import Layout, Tower
from tokcomp.plugin_signals import attended
from tokcomp.runner.hooks import base_implementation
from tokcomp.stages import VisionReducer
from tokcomp.types import Signal, Site

__all__ = ["INSIDE", "looks_inside", "refuse_infinite", "refuse_split_units", "refuse_unmet"]

INSIDE = frozenset({Signal.CLS_ATTENTION, Signal.UNSPLIT_ATTENTION, Signal.KEYS, Signal.UNSPLIT_KEYS})
"""Signals that come from the attention of the tower's blocks."""


def looks_inside(needs: frozenset[Any]) -> bool:
    """Whether any of these signals, those of plug-ins included, comes from the attention of the tower's blocks."""
    return bool(needs & INSIDE) or bool(attended(needs, "vision"))


def refuse_unmet(tower: Tower, reducer: VisionReducer, sites: Sequence[Site], family: str) -> None:
    """Check a reducer's needs against a tower, before anything runs.

    Raises:
        CompatibilityError: a need is not met; the message says what to use instead.
    """
    depth, who = len(tower.blocks), f"vision strategy '{reducer.name or type(reducer).__name__}'"
    if not isinstance(sites, Sequence) or not all(isinstance(site, Site) for site in sites):
        raise CompatibilityError(
            f"sites() of {who} returned {sites!r}, expected a tuple of places such as (Site.block(4),), (Site.features(),) or "
            "(Site.projected(),)"
        )
    inside = any(site.layer is not None for site in sites)
    if not tower.has_cls and reducer.refuses_without_cls():
        raise CompatibilityError(
            f"{who} needs the attention of a CLS token, and this vision tower has none; use a strategy without that "
            "need, or one that takes the attention received in its place (`tokcomp show vision/NAME` says so)"
        )
    for site in sites:
        if site.layer is not None and not 0 <= site.layer < depth:
            raise CompatibilityError(f"{who} acts at {site}, but the vision tower has {depth} blocks: 0..{depth - 1}")
    if tower.sealed and inside:
        raise CompatibilityError(
            f"{who} removes tokens inside the vision tower, which {family} does not allow: {tower.sealed}; use a "
            "strategy that acts on the features (see `tokcomp list vision`) or one of another stage"
        )
    if tower.segmented and inside and reducer.weighs_attention() and "flash" in base_implementation(tower.config):
        raise CompatibilityError(
            f"{who} weighs merged tokens in the attention of the vision tower, which flash attention over packed images "
            "has no mask for: load the model with attn_implementation='sdpa', or set proportional_attention to false"
        )
    if reducer.scope() != "row" and Signal.CLS_TOKEN in reducer.signals():
        raise CompatibilityError(
            f"{who} puts the CLS token among the tokens, and several images, tiles or frames have one each: use another strategy"
        )


def refuse_split_units(tower: Tower, layout: Layout, who: str, kind: str, family: str) -> None:
    """Refuse to remove tokens inside a tower whose patches become tokens in groups that the runner cannot follow.

    Raises:
        CompatibilityError: ``layout`` has such groups.
    """
    if layout.members is not None and not tower.segmented and not tower.sealed:
        raise CompatibilityError(
            f"{who} removes tokens inside the vision tower, and in {kind}s of {family} several patches become one "
            "token behind it, which cannot lose some of them; use a strategy that acts on the features (see "
            "`tokcomp list vision`) or one of another stage"
        )


def refuse_infinite(features: Tensor) -> None:
    """Refuse features that are no numbers, which would spread over the whole prompt."""
    # The largest of them tells: NaN and Inf are what it becomes.
    if features.numel() and not math.isfinite(float(features.detach().abs().amax())):
        raise FeatureError(
            "the image features hold NaN or Inf: check the pixel values and the weights (dtype overflow?)"
        )
