"""The text of the prompt that images are encoded for: what guides a reducer."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokcomp.errors import CompatibilityError, UnsupportedError
from tokcomp.models.adapter import Adapter
from tokcomp.runner.hooks import Hooks
from tokcomp.runner.images import Images
from tokcomp.runner.placeholders import place_images
from tokcomp.runner.turns import own_part

__all__ = ["PromptText", "Text"]

Placeholders = Callable[[Tensor | None, Tensor | None], dict[str, Tensor]]


@dataclass(frozen=True)
class Text:
    """The input embeddings ``[i, t, d]`` of the text that goes with each row of a tower call; ``valid`` ``[i, t]``."""

    embeds: Tensor
    valid: Tensor


class PromptText:
    """Notes the prompt of a forward pass or of ``generate()`` before its images are encoded; state is per thread.

    Args:
        adapter: the model.
        placeholders: ``(input_ids, inputs_embeds)`` -> per kind the placeholders ``[b, l]``.
        who: the strategy, for messages.
    """

    def __init__(self, adapter: Adapter, placeholders: Placeholders, who: str) -> None:
        self.adapter, self.placeholders, self.who = adapter, placeholders, who
        self._local = threading.local()

    def install(self, hooks: Hooks) -> None:
        if self.adapter.multimodal is not None:
            hooks.wrap(self.adapter.multimodal, "forward", self._noting)
        if hasattr(self.adapter.model, "generate"):
            hooks.wrap(self.adapter.model, "generate", functools.partial(self._noting, generating=True))

    def _noting(self, call: Callable[..., Any], *, generating: bool = False) -> Callable[..., Any]:
        """``call`` with its prompt noted as long as it runs, without what the cache holds of it; a step that brings no pixels
        notes nothing."""
        names = tuple(inspect.signature(call).parameters)

        @functools.wraps(call)
        def noting(*args: Any, **kwargs: Any) -> Any:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            before = getattr(self._local, "prompt", None)
            if any(name.startswith("pixel_values") and value is not None for name, value in given.items()):
                ids = given.get("inputs")  # what generate() calls them where they come first
                given = given if ids is None else {**given, "input_ids": ids}
                self._local.prompt = own_part(given, generating=generating)
            try:
                return call(*args, **kwargs)
            finally:
                self._local.prompt = before

        return noting

    def of(self, images: Images) -> Text:
        """The text of every row's sample: that after the last image, or all of it where none comes after.

        Raises:
            UnsupportedError: the images are encoded for no prompt.
            CompatibilityError: a sample has no text.
            FeatureError: placeholders and images disagree.
        """
        given, masks = self._prompt()
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        assert self.adapter.embed is not None
        vision = torch.stack(list(masks.values())).any(dim=0)
        text = ~vision if given.get("attention_mask") is None else ~vision & given["attention_mask"].bool()
        after = text & (vision.long().flip(1).cumsum(1).flip(1) == 0)
        text = after.where(after.any(dim=1, keepdim=True), text)
        counts = text.sum(dim=1)
        if not bool(counts.all()):
            raise CompatibilityError(
                f"{self.who} is guided by the prompt's text, and a prompt has none: put text into it"
            )
        rows = torch.tensor(_samples(images, masks), device=text.device)
        width = int(counts.max())
        taken = (~text).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
        valid = text.gather(1, taken)
        states = embeds if embeds is not None else self.adapter.embed(ids)
        return Text(states.gather(1, taken[..., None].expand(-1, -1, states.shape[-1]))[rows], valid[rows])

    def samples_of(self, images: Images) -> list[int]:
        """The sample that every row belongs to.

        Raises:
            UnsupportedError: the images are encoded for no prompt.
            FeatureError: placeholders and images disagree.
        """
        return _samples(images, self._prompt()[1])

    def _prompt(self) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
        """What the model was called with, and its placeholders."""
        given: Mapping[str, Any] = getattr(self._local, "prompt", None) or {}
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        if (ids is None and embeds is None) or self.adapter.embed is None:
            raise UnsupportedError(
                f"{self.who} goes by the prompt, and these images are encoded without one: call the model, or its "
                "generate(), with input_ids and pixel_values together"
            )
        return given, self.placeholders(ids, embeds)


def _samples(images: Images, masks: Mapping[str, Tensor]) -> list[int]:
    placement = place_images([images], {images.kind: masks[images.kind].sum(dim=1).tolist()})
    sample = [0] * images.n_rows
    for number in reversed(range(len(placement.counts))):
        for item in placement.of_sample(number):
            for _, row in placement.rows(item):
                sample[row] = number
    return sample
