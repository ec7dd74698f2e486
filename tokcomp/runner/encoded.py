"""Watches the methods that encode images and videos, and keeps what was encoded until a prompt takes it."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from tokcomp.errors import FeatureError, UnsupportedError
from tokcomp.models.adapter import Adapter, Layout, Modality
from tokcomp.runner.hooks import Hooks
from tokcomp.runner.images import Images
from tokcomp.runner.placeholders import refuse_misfit

__all__ = ["Encoded"]

_MARK = "_tokcomp_images"
"""Attribute of an encoder's output, and of the features in it, that names the session and the images it belongs to."""


_SIZES = "image_sizes", "image_grid_thw", "video_grid_thw"
"""Arguments that tell how large images are."""


class Encoded:
    """The images and videos of one model that were encoded and belong to no prompt yet; state is per thread."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self._local = threading.local()

    def install(self, hooks: Hooks) -> None:
        for modality in self.adapter.modalities:
            hooks.wrap(self.adapter.multimodal, modality.encode, functools.partial(self._watched, modality))

    @property
    def pending(self) -> list[Images]:
        """What the next prompt with placeholders owns, oldest first."""
        if not hasattr(self._local, "pending"):
            self._local.pending = []
        pending: list[Images] = self._local.pending
        return pending

    @property
    def call(self) -> tuple[str, Mapping[str, Any]]:
        """The kind that is being encoded, and the arguments of the method that does it."""
        return getattr(self._local, "call", None) or ("image", {})

    def take(self, images: Images) -> None:
        """Images that the tower has just encoded."""
        self.pending.append(images)

    def release(self) -> list[Images]:
        """Hand the pending images over to a prompt."""
        images, self._local.pending = self.pending, []
        self._local.counts = {}  # what is encoded next is for another pass
        return images

    def expect(self, masks: Mapping[str, Tensor], outputs: Mapping[str, Any], *, active: bool) -> dict[str, list[int]]:
        """A forward pass begins: its images are those of ``outputs``, which encoders gave before it, and those that it
        encodes itself.

        Args:
            masks: per kind the placeholders ``[b, l]``; none where the pass has no images.
            outputs: per kind the output of its encoder.
            active: the session changes what runs, so that it must know every image.

        Returns:
            Per kind the placeholders of each sample.

        Raises:
            UnsupportedError: outputs of an encoder that ran without this session.
            FeatureError: placeholders and features disagree.
        """
        self._local.pending = []
        numbers = torch.stack([mask.sum(dim=1) for mask in masks.values()]).tolist() if masks else []
        self._local.counts = counts = dict(zip(masks, numbers, strict=True))
        for kind, output in outputs.items():
            owner, images = next(
                (getattr(each, _MARK) for each in _carriers(output) if hasattr(each, _MARK)), (None, [])
            )
            if active and owner is not self:
                raise UnsupportedError(
                    "these image features were encoded outside this `with` block, or cut up since (chunked prefill is not "
                    "supported): encode them inside it"
                )
            for table in images:
                self.check(kind, table.layout)
            self._local.pending += images
        return counts

    def announce(self, masks: Mapping[str, Tensor]) -> None:
        """What is encoded next is for these placeholders ``[b, l]``, per kind: :meth:`check` goes by them until a forward
        pass brings its own."""
        self._local.counts = {kind: mask.sum(dim=1).tolist() for kind, mask in masks.items()}

    def check(self, kind: str, layout: Layout) -> None:
        """Refuse images that do not fill the placeholders of the pass that is under way.

        Raises:
            FeatureError: placeholders and features disagree, or images give no tokens.
        """
        if not sum(layout.lengths):
            raise FeatureError(
                f"the {kind}s are smaller than a patch and give no tokens: leave them out, or enlarge them"
            )
        counts = getattr(self._local, "counts", {})
        if kind in counts:
            refuse_misfit(kind, layout.lengths, counts[kind])

    def _watched(self, modality: Modality, original: Callable[..., Any]) -> Callable[..., Any]:
        names = tuple(inspect.signature(original).parameters)

        @functools.wraps(original)
        def encode(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._local, "call", None) is not None:
                return original(*args, **kwargs)  # Qwen3-VL encodes videos by its method for images
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            _refuse_unfit_pixels(given)
            before = len(self.pending)
            self._local.call = modality.kind, given
            try:
                output = original(*args, **kwargs)
            finally:
                self._local.call = None
            for each in _carriers(output):
                setattr(each, _MARK, (self, self.pending[before:]))
            return output

        return encode


def _carriers(output: Any) -> list[Any]:
    """An encoder's output and the features in it: accelerate's hooks make a new output around the same features."""
    features = getattr(output, "pooler_output", None)
    if features is None:
        features = getattr(output, "last_hidden_state", None)
    features = list(features) if isinstance(features, list | tuple) else [features]
    return [each for each in (output, *features) if hasattr(each, "__dict__")]


def _refuse_unfit_pixels(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        for part in _tensors(value):
            if name in _SIZES and part.numel() and bool((part < 1).any()):
                raise FeatureError(f"{name} {part.tolist()} tells of an image without pixels: leave empty images out")
            if not name.startswith("pixel_values"):
                continue
            if part.numel() == 0:
                raise FeatureError(
                    f"{name} has shape {tuple(part.shape)}, which holds no pixels: leave empty images out"
                )
            if not torch.is_floating_point(part):
                raise FeatureError(
                    f"{name} is {part.dtype}, expected floating-point pixels: prepare images with the model's own processor"
                )


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        return (value,)
    return [each for each in value if isinstance(each, Tensor)] if isinstance(value, list | tuple) else ()
