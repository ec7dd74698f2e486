"""What one call of a vision tower encodes: its rows, what becomes of their patches, and which placeholders these fill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["Call", "Layout"]


@dataclass(frozen=True)
class Call:
    """One encoding of images or videos.

    Attributes:
        kind: ``image`` or ``video``.
        pixels: the first argument of the tower.
        tower: the tower's other arguments by name.
        given: the arguments of the model's method that encodes this kind (see :class:`Modality`) by name.
    """

    kind: str
    pixels: Tensor
    tower: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """The tokens of one call of the tower before anything is dropped.

    The tower encodes *rows*: an image, a tile of a large image, or a frame. A row's patches become *units*, one token of
    the language model each. Units are numbered row after row.

    Attributes:
        grids: rows and columns of units of each row of the tower.
        owners: the image or video, from 0, that each row of the tower belongs to; ascending.
        members: for each row the patches that make up each unit ``[n, g]``; None where a unit is one patch.
        placed: ``[p]`` the unit that each placeholder of the prompt holds, -1 for a separator (a newline token); None where
            the placeholders hold all units in order.
        lengths: placeholders of each image or video, in order.
        pixels: the pixels of each row, where the rows of the call's pixels are not just that.
        weights: how much of each of ``members`` is in a unit ``[n, g]``, summing to 1; None: equal parts.
        late: the method of the multimodal module that makes units of projected patches, where they are made only there: one
            of :attr:`Tower.late`. It returns the units of all rows, or the filled placeholders image by image.
        patches: patches of each row; None: those of ``members``, every one in one unit, or else as many as units.
        regrouped: rows are images, whose units lie across several rows of the tower; these, in order, make up those.
    """

    grids: tuple[tuple[int, int], ...]
    owners: tuple[int, ...]
    lengths: tuple[int, ...]
    members: tuple[Tensor, ...] | None = None
    placed: Tensor | None = None
    pixels: tuple[Tensor, ...] | None = None
    weights: tuple[Tensor, ...] | None = None
    late: str = ""
    patches: tuple[int, ...] | None = None
    regrouped: bool = False

    @classmethod
    def one_row_each(
        cls, rows: int, grid: tuple[int, int], members: Tensor | None = None, patches: int | None = None
    ) -> Layout:
        """Every row of the tower is an image of its own, all of one size, and its units fill the placeholders in order."""
        return cls(
            grids=(grid,) * rows,
            owners=tuple(range(rows)),
            lengths=(grid[0] * grid[1],) * rows,
            members=None if members is None else (members,) * rows,
            patches=None if patches is None else (patches,) * rows,
        )
