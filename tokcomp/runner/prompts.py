"""Reads a prompt: which columns are image tokens, which of them the vision stage left empty, what enters the first layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokcomp.errors import FeatureError
from tokcomp.models.adapter import Adapter
from tokcomp.runner.apply import compress_index, gather_tokens
from tokcomp.runner.arguments import tokens_in
from tokcomp.runner.filling import build_prompt
from tokcomp.runner.images import Images
from tokcomp.runner.passes import padding_of, whole
from tokcomp.runner.placeholders import Placement, place_images, refuse_without_text, text_digest
from tokcomp.runner.positions import in_planes, next_after
from tokcomp.runner.request import Prompt, Request, Sequence
from tokcomp.stages import CachePolicy, PrefillFilter, VisionReducer
from tokcomp.types import Signal

__all__ = ["Given", "PromptReader"]


@dataclass(frozen=True)
class Given:
    """What only the multimodal model is told, and its decoder no longer.

    Attributes:
        called: the decoder runs for a multimodal model, and not on its own.
        padding: the 2-D padding mask, of which some models make their masks before the decoder is called.
        blocks: see :class:`~tokcomp.runner.masks.Visibility`.
        call: the arguments of its call.
    """

    called: bool = False
    padding: Tensor | None = None
    blocks: Tensor | None = None
    call: Mapping[str, Any] = field(default_factory=dict)

    def padding_in(self, kwargs: dict[str, Any]) -> Tensor | None:
        """The padding mask of a call of the decoder."""
        mask = kwargs.get("attention_mask")
        made = isinstance(mask, dict) or (mask is not None and mask.dim() != 2)
        return self.padding if made and self.called else mask

    def numbered(self, kwargs: dict[str, Any]) -> bool:
        """Whether the position ids of a call of the decoder are what the caller gave, and not what the model made up."""
        return kwargs.get("position_ids") is not None and (not self.called or self.call.get("position_ids") is not None)


class PromptReader:
    """Turns the decoder's inputs into a request and its first sequence."""

    def __init__(self, adapter: Adapter, reducer: VisionReducer | None, prefill: PrefillFilter | None,
                 policy: CachePolicy | None) -> None:  # fmt: skip
        self.adapter, self.reducer, self.filter = adapter, reducer, prefill
        needs = (prefill.signals() if prefill else frozenset()) | (policy.signals() if policy else frozenset())
        self.digests = Signal.DIGEST in needs
        guides = [strategy.guided_by() for strategy in (prefill, policy) if strategy is not None]
        self.guided_by = next((guide for guide in guides if guide is not None), None)

    def placeholders(self, input_ids: Tensor | None, embeds: Tensor | None,
                     given: Set[str] = frozenset()) -> dict[str, Tensor]:  # fmt: skip
        """Per kind of vision input the placeholders ``[b, l]`` of what the multimodal model was called with.

        Where several kinds have one placeholder (GLM-4V), it is that of the kind that was ``given``.
        """
        owned = {modality.token_id for modality in self.adapter.modalities if modality.kind in given}
        kinds = {modality.kind: modality.token_id for modality in self.adapter.modalities
                 if modality.kind in given or modality.token_id not in owned}  # fmt: skip
        if input_ids is not None:
            return {kind: input_ids.eq(token_id) for kind, token_id in kinds.items()}
        if embeds is None or self.adapter.embed is None:
            return {}
        rows = {
            kind: self.adapter.embed(torch.tensor(token_id, device=embeds.device)) for kind, token_id in kinds.items()
        }
        return {kind: (embeds == row).all(dim=-1) for kind, row in rows.items()}

    def read(self, masks: dict[str, Tensor], counts: dict[str, list[int]], images: list[Images],
             kwargs: dict[str, Any]) -> Request:  # fmt: skip
        """The request of a prompt whose placeholders are ``masks`` ``[b, l]`` (none: a plain language model), ``counts`` of
        each kind and sample."""
        embeds = tokens_in(kwargs)
        present = padding_of(kwargs.get("attention_mask"), embeds)
        if not masks:
            prompt = self._plain(embeds, present)
            b = prompt.valid.shape[0]
            request = Request(prompt, [], [[]] * b, [0] * b, [0] * b)
        else:
            request = self._with_images(masks, present, embeds, place_images(images, counts))
        request.padded = request.prompt.present is not None
        request.first_position = self.adapter.decoder.first_position
        if kwargs.get("position_ids") is None:
            request.next_position = torch.full((1,), embeds.shape[1], device=embeds.device)
        else:
            request.next_position = next_after(self._positions(kwargs, embeds))
        return request

    def _plain(self, embeds: Tensor, present: Tensor | None) -> Prompt:
        valid = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device) if present is None else present
        tokens = embeds if embeds.dim() == 3 else embeds[..., None]
        return Prompt.of_text(valid, present, text_digest(tokens, valid, None) if self.digests else None)

    def _with_images(self, masks: dict[str, Tensor], present: Tensor | None, embeds: Tensor,
                     placement: Placement) -> Request:  # fmt: skip
        digest = None
        if self.digests:
            text = ~torch.stack(list(masks.values())).any(dim=0)
            digest = text_digest(embeds, text if present is None else present & text, placement)
        prompt = build_prompt(masks, present, placement, digest=digest)
        if self.guided_by is not None:
            refuse_without_text(prompt, self.guided_by)
        samples = [placement.of_sample(sample) for sample in range(len(placement.counts))]
        rows = [[row for item in items for row in placement.rows(item)] for items in samples]
        return Request(prompt, placement.images, rows, [len(items) for items in samples], placement.counts)

    def _positions(self, kwargs: dict[str, Any], tokens: Tensor) -> Tensor:
        given = kwargs.get("position_ids")
        if given is None:
            given = torch.arange(tokens.shape[1], device=tokens.device)[None]
        return in_planes(given, self.adapter.decoder.planes)

    def untouched(self, request: Request, kwargs: dict[str, Any]) -> Sequence:
        """The sequence of all the prompt's columns."""
        return whole(request.prompt, self._positions(kwargs, tokens_in(kwargs)))

    def deferred(self, masks: dict[str, Tensor], counts: dict[str, list[int]], images: list[Images], kwargs: dict[str, Any],
                 *, depth: int) -> Callable[[], Request]:  # fmt: skip
        """How to make the request of a prompt of which nothing is dropped, later; its embeddings are not held on to."""
        tokens = tokens_in(kwargs)
        shape = tokens.new_empty(*tokens.shape[:2], *[0] * (tokens.dim() - 2))
        light = {"inputs_embeds": shape, **{name: kwargs.get(name) for name in ("attention_mask", "position_ids")}}

        def read() -> Request:
            request = self.read(masks, counts, images, light)
            request.layers = [self.untouched(request, light)] * depth
            return request

        return read

    def first_sequence(self, request: Request, kwargs: dict[str, Any]) -> tuple[Sequence, dict[str, Any], bool]:
        """Drop the placeholders that the vision stage left empty, and align the rows to the right.

        Returns:
            What enters the first layer, the decoder's arguments for it, and whether its masks differ from those that
            the model makes itself.

        Raises:
            FeatureError: the embeddings hold NaN where the runner put none.
        """
        sequence = self.untouched(request, kwargs)
        touched = any(images.touched for images in request.images)
        if not touched and (sequence.valid is None or bool(sequence.valid[:, -1].all())):
            return sequence, kwargs, sequence.valid is not None
        prompt, request.moved = request.prompt, True
        if touched:
            _refuse_strange_nan(prompt, kwargs["inputs_embeds"])
        lengths = [text + vision for text, vision in zip(prompt.texts, prompt.visions, strict=True)]
        taken = compress_index(prompt.valid, max(lengths))
        valid = None if len(set(lengths)) == 1 else prompt.valid.gather(1, taken)
        anew = touched and self.reducer is not None and self.reducer.positions == "renumber"
        sequence = sequence.take(taken, valid, prompt.vision, prompt.visions, number_anew=anew,
                                 first=request.first_position, stands=prompt.stands)  # fmt: skip
        for name in ("inputs_embeds", "input_ids"):
            if kwargs.get(name) is not None:
                kwargs[name] = gather_tokens(kwargs[name], sequence.index)
        if valid is not None and kwargs.get("inputs_embeds") is not None:
            # Padding is made of dropped columns, which hold NaN: masked or not, a NaN value would spread.
            kwargs["inputs_embeds"] = kwargs["inputs_embeds"].masked_fill(~valid[..., None], 0.0)
        kwargs["position_ids"] = sequence.positions
        # Every layer gets a mask of its own; a 4-D one is what keeps the model from building one here.
        kwargs["attention_mask"] = torch.zeros(1, 1, 1, 1, device=taken.device)
        return sequence, kwargs, True


def _refuse_strange_nan(prompt: Prompt, embeds: Tensor) -> None:
    empty = ~prompt.valid if prompt.present is None else prompt.present & ~prompt.valid
    found = embeds[..., 0].isnan()
    if not torch.equal(found, empty):
        if torch.equal(found.sum(), empty.sum()):
            raise FeatureError(
                "the image features came in another order than they were encoded: some versions of transformers mix up the "
                "images of a prompt that has several where beams or num_return_sequences repeat it; give such prompts "
                "num_beams=1 and num_return_sequences=1"
            )
        raise FeatureError("the prompt's embeddings hold NaN where no token was dropped: check the weights and inputs")
