"""Several rows of the tower shown to a reducer as one: the tiles of an image, the frames of a video, the images of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokcomp.errors import UnsupportedError
from tokcomp.runner.images import Images
from tokcomp.runner.text import PromptText
from tokcomp.types import Selection, VisionView

__all__ = ["Together", "groups_of"]

_ON_LAST_AXIS = ("_cls_attention",)


@dataclass(frozen=True)
class Together:
    """Rows laid end to end, group by group.

    Attributes:
        grids: of each group: its rows one below the other where they are of one size, else a single line.
        index: where each token of a group stands in the table ``[i, k]`` laid flat ``[g, w]``; 0 where padded.
        valid: tokens that are no padding ``[g, w]``. even: all of them.
        before: units of the group that stand before those of each row ``[i]``.
        group: the group of each row ``[i]``.
    """

    grids: tuple[tuple[int, int], ...]
    index: Tensor
    valid: Tensor
    even: bool
    before: Tensor
    group: Tensor

    @classmethod
    def of(cls, groups: Sequence[Sequence[int]], grids: Sequence[tuple[int, int]], valid: Tensor) -> Together:
        """``groups`` of rows, each of which is in one; ``valid`` ``[i, k]`` tells real tokens."""
        rows, k = valid.shape
        before, group, joint = [0] * rows, [0] * rows, []
        for number, members in enumerate(groups):
            units = 0
            for row in members:
                before[row], group[row] = units, number
                units += grids[row][0] * grids[row][1]
            first = grids[members[0]]
            alike = all(grids[row] == first for row in members)
            joint.append((first[0] * len(members), first[1]) if alike else (1, units))
        parts = []
        for members in groups:
            own = torch.tensor(members, device=valid.device)
            places = own[:, None] * k + torch.arange(k, device=valid.device)
            parts.append(places[valid[own]])
        index = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
        lengths = torch.tensor([len(part) for part in parts], device=valid.device)
        real = torch.arange(index.shape[1], device=valid.device) < lengths[:, None]
        numbers = torch.tensor([before, group], device=valid.device)
        even = len({len(part) for part in parts}) == 1
        return cls(tuple(joint), index, real, even, numbers[0], numbers[1])

    def shown(self, view: VisionView) -> VisionView:
        """The view of the groups."""

        def laid(name: str, value: Tensor) -> Tensor:
            value = value.movedim(-1, 1) if name in _ON_LAST_AXIS else value
            flat = value.flatten(0, 1)[self.index]  # (g, w, ...)
            flat = flat.masked_fill(~self.valid.view(*self.valid.shape, *[1] * (flat.dim() - 2)), 0)
            return flat.movedim(1, -1) if name in _ON_LAST_AXIS else flat

        own: dict[str, Any] = {name: value for name, value in vars(view).items() if isinstance(value, Tensor)}
        own.pop("_cls_token", None)
        digest = own.pop("_digest", None)
        if digest is not None:
            place = 2 * self.before + 3
            own["_digest"] = digest.new_zeros(len(self.grids)).index_add(0, self.group, digest * place)
        own["origin"] = view.origin + self.before[:, None]
        tensors = {name: value if name == "_digest" else laid(name, value) for name, value in own.items()}
        elsewhere = {block: {name: laid(name, value) for name, value in signals.items()}
                     for block, signals in view._elsewhere.items()}  # fmt: skip
        changed: dict[str, Any] = {
            **tensors,
            "_extra": {name: laid(name, value) for name, value in view._extra.items()},
            "valid": self.valid,
            "padded": not self.even,
            "grid": self.grids[0],
            "owners": (),
            "_elsewhere": elsewhere,
        }
        return replace(view, **changed)

    def apart(self, selection: Selection, valid: Tensor, who: str) -> Selection:
        """A selection of the groups' tokens as one of the rows' tokens; a row may lose all of them.

        Raises:
            UnsupportedError: the selection merges tokens.
        """
        if selection.assign is not None or selection.mix is not None:
            raise UnsupportedError(
                f"{who} merges tokens, which it cannot do across images, tiles or frames: let it act on each by itself, or "
                "take a strategy that drops tokens"
            )
        keep = selection.keep
        places = self.index.gather(1, keep.clamp(min=0)).where(keep >= 0, valid.numel())
        none = torch.zeros(valid.numel() + 1, dtype=torch.bool, device=valid.device)
        kept = none.scatter(0, places.flatten(), True)[:-1].view(valid.shape)
        rows = Selection.from_mask(kept)
        if selection.protect is None:
            return rows
        marked = none.scatter(0, places[selection.protect & (keep >= 0)], True)[:-1].view(valid.shape)
        return replace(rows, protect=marked.gather(1, rows.keep.clamp(min=0)) & (rows.keep >= 0))


def groups_of(scope: str, images: Images, prompt: PromptText | None) -> list[list[int]] | None:
    """The rows of a tower call that a reducer of this scope sees as one; None where it sees each by itself."""
    if scope == "row":
        return None
    owners: Sequence[int] = images.layout.owners
    if scope == "prompt":
        assert prompt is not None
        owners = prompt.samples_of(images)
    groups: dict[int, list[int]] = {}
    for row, owner in enumerate(owners):
        groups.setdefault(owner, []).append(row)
    return list(groups.values())
