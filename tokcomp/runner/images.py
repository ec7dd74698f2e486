"""What the vision stage knows of the images of one tower call."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokcomp.ops.merging import compose_source
from tokcomp.types import Selection, Site

__all__ = ["Images", "pixel_digest"]


@dataclass
class Images:
    """The token table of one tower call: i images, n patches each, k tokens left of the longest row.

    Attributes:
        grid: rows and columns of patches.
        origin: the patch that each token stands at ``[i, k]``.
        valid: False for padding ``[i, k]`` (at the end of a row).
        sizes: patches that each token stands for ``[i, k]`` float32.
        protected: key tokens ``[i, k]``.
        source: the token that each original patch is in now ``[i, n]``, -1 where it was dropped.
        uniform: no row holds padding (known without asking the device).
        touched: a reducer changed the sequence.
        history: after each site that shortened the sequence: the site and ``source`` as it was then.
        block_tokens: per tower block, the tokens of each image that enter it ``[i]`` (prefix included), or one number.
        projected_tokens: tokens of each image that the projector computes ``[i]``, or one number.
        digest: integer per image that depends on its pixels only ``[i]``, or None where nobody needs it.
    """

    grid: tuple[int, int]
    origin: Tensor
    valid: Tensor
    sizes: Tensor
    protected: Tensor
    source: Tensor
    uniform: bool = True
    touched: bool = False
    history: list[tuple[Site, Tensor]] = field(default_factory=list)
    block_tokens: list[Tensor | int] = field(default_factory=list)
    projected_tokens: Tensor | int = 0
    digest: Tensor | None = None

    @classmethod
    def fresh(cls, n_images: int, grid: tuple[int, int], device: torch.device) -> Images:
        """Every patch a token of its own."""
        n = grid[0] * grid[1]
        index = torch.arange(n, device=device).expand(n_images, n)
        return cls(
            grid=grid,
            origin=index,
            valid=torch.ones(n_images, n, dtype=torch.bool, device=device),
            sizes=torch.ones(n_images, n, device=device),
            protected=torch.zeros(n_images, n, dtype=torch.bool, device=device),
            source=index,
        )

    @property
    def n_images(self) -> int:
        return self.source.shape[0]

    @property
    def n_patches(self) -> int:
        return self.source.shape[1]

    def counts(self) -> Tensor:
        """Tokens of each image ``[i]``."""
        return self.valid.sum(dim=1)

    def apply(self, site: Site, selection: Selection, sizes: Tensor) -> None:
        """Follow a (cleaned) selection; ``sizes`` are the token sizes that merging gave ``[i, k]``."""
        n = self.origin.shape[1]
        keep = selection.keep
        present = keep >= 0
        index = keep.clamp(min=0)
        shortened = keep.shape[1] < n or not selection.ascending or selection.assign is not None or selection.ragged
        self.protected = _protected_after(self.protected, selection, index) & present
        if not shortened:
            return
        self.source = compose_source(self.source, selection, n)
        self.origin = self.origin.gather(1, index).where(present, 0)
        self.sizes = sizes
        self.valid = present
        self.uniform = not selection.ragged or bool(present.all())
        self.touched = True
        self.history.append((site, self.source))


def _protected_after(protected: Tensor, selection: Selection, index: Tensor) -> Tensor:
    if selection.assign is None:
        after = protected.gather(1, index)
    else:  # a slot is protected when any of its members was
        slots = selection.assign.clamp(min=0)
        members = (protected & (selection.assign >= 0)).long()
        after = torch.zeros_like(index).scatter_add_(1, slots, members) > 0
    return after if selection.protect is None else after | selection.protect


def pixel_digest(pixel_values: Tensor) -> Tensor:
    """An integer per image from the bits of its pixels ``[i]`` int64; equal for equal images, whatever their batch."""
    flat = pixel_values.reshape(pixel_values.shape[0], -1).float().contiguous().view(torch.int32).long()
    # Odd multipliers that differ from pixel to pixel; int64 arithmetic wraps, which is what a hash wants.
    weights = torch.arange(flat.shape[1], device=flat.device).mul_(2).add_(1).mul_(-7046029254386353131)
    return (flat * weights).sum(dim=1)
