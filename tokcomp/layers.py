"""Layers of a model of any depth, as strategies' fields name them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from tokcomp.errors import CompatibilityError

__all__ = ["LayerSpec", "resolve_layer", "resolve_stages"]

LayerSpec = Annotated[
    int | Annotated[float, Field(ge=0, lt=1)],
    Field(description="a layer: its number from 0, negative from the end, or a share of the depth (0.25)"),
]
"""A layer of any model: an integer is the layer's number (negative counts from the end), a float below 1 a share of the
depth."""


def resolve_layer(layer: LayerSpec, depth: int, *, what: str) -> int:
    """The number of ``layer`` in a stack of ``depth`` layers.

    Raises:
        CompatibilityError: the layer lies beyond the depth; ``what`` names the field in the message.
    """
    number = math.floor(layer * depth) if isinstance(layer, float) else layer + depth if layer < 0 else layer
    if not 0 <= number < depth:
        raise CompatibilityError(
            f"{what}={layer} lies beyond this model's {depth} layers: give 0..{depth - 1}, a negative number that counts "
            "from the end, or a share of the depth such as 0.25"
        )
    return number


def resolve_stages(
    layers: Sequence[LayerSpec] | None, published: Sequence[int], published_depth: int, depth: int, *, what: str
) -> dict[int, int]:
    """The layers of a strategy that acts several times, ascending: layer to the number of its stage from 0.

    Args:
        layers: as given; None: ``published``, those of a model of ``published_depth`` layers, scaled to this one.
        depth: layers of this model. Where several stages fall on one layer of it, the last of them counts.
        what: names the field in messages.

    Raises:
        CompatibilityError: a layer lies beyond the depth.
    """
    if layers is None:
        numbers = [layer * depth // published_depth for layer in published]
    else:
        numbers = [resolve_layer(layer, depth, what=what) for layer in layers]
    return {layer: max(i for i, other in enumerate(numbers) if other == layer) for layer in sorted(set(numbers))}
