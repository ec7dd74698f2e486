"""Signals of a tower's patches as signals of the units that the patches make up."""

from __future__ import annotations

from torch import Tensor

from tokcomp.runner.images import Images

__all__ = ["over_units"]


def over_units(images: Images, name: str, signal: Tensor) -> Tensor:
    """A signal of every patch as that of every unit: its mean over the patches that the unit is made of."""
    members = images.members
    if members is None:
        return signal
    last = signal.dim() == 2 or name == "_cls_attention"  # patches on the last axis
    by_patch = signal.movedim(-1, 1) if last else signal  # (i, patches, ...)
    patches = by_patch.flatten(2) if by_patch.dim() > 2 else by_patch[..., None]
    if images.layout.regrouped:
        patches = images.in_rows(patches, images.patches)
    picked = patches.gather(1, members.flatten(1)[..., None].expand(-1, -1, patches.shape[2]))
    picked, weights = picked.unflatten(1, members.shape[1:]), images.weights  # (i, n, g, ...)
    mean = picked.mean(dim=2) if weights is None else (picked * weights[..., None].to(picked.dtype)).sum(dim=2)
    return mean[..., 0] if signal.dim() == 2 else mean.movedim(1, -1) if last else mean
