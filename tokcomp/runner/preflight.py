"""Refuses prompts and ways of generating that would fail later, or run without doing what was asked, before anything is
computed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from tokcomp.errors import FeatureError, UnsupportedError
from tokcomp.models.adapter import Adapter
from tokcomp.runner.adoption import refuse_implementation, refuse_unfit
from tokcomp.runner.arguments import by_name, cache_in, kinds_in
from tokcomp.runner.cache import bound_request
from tokcomp.runner.devices import device_of, moves_inputs
from tokcomp.runner.encoded import Encoded
from tokcomp.runner.hooks import Hooks
from tokcomp.runner.turns import own_part

__all__ = ["Preflight"]

Placeholders = Callable[..., dict[str, Tensor]]


@_disable_dynamo  # raised while it is traced, it would only make the rest run without being compiled
def _refuse_compiled_call() -> None:
    raise UnsupportedError(
        "the model was compiled (torch.compile) while a pipeline is attached, and compression changes the lengths from layer to "
        "layer and from prompt to prompt, so that every call would compile anew: call the model itself"
    )


class Preflight:
    """Looks at what a model and its ``generate()`` are called with, ahead of everything else.

    Args:
        adapter: the model. ``encoded``: told how many placeholders the images that come will have to fill.
        placeholders: ``(input_ids, inputs_embeds, kinds)`` -> per kind the placeholders ``[b, l]``.
        policy: the cache policy's name, or None.
    """

    def __init__(self, adapter: Adapter, encoded: Encoded, placeholders: Placeholders, policy: str | None) -> None:
        self.adapter, self.encoded, self.placeholders, self.policy = adapter, encoded, placeholders, policy
        self.mixed = _mixed(adapter)

    def install(self, hooks: Hooks) -> None:
        hooks.before(self.adapter.multimodal or self.adapter.decoder.module, self._before_forward)
        if hasattr(self.adapter.model, "generate"):
            hooks.wrap(self.adapter.model, "generate", self._checked)

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            _refuse_compiled_call()
        given = by_name(module, args, kwargs)
        if self._concerned(given):
            self._refuse_inputs(given)
            self._refuse_cache(given, self.adapter.decoder.config)

    def _checked(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        names = tuple(inspect.signature(generate).parameters)

        @functools.wraps(generate)
        def checked(*args: Any, **kwargs: Any) -> Any:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            if self._concerned(given):
                settings = given.get("generation_config") or self.adapter.model.generation_config
                self._refuse_inputs(given)
                self._refuse_ways(given, settings)
                self._refuse_cache(given, settings)
                self._announce(given)
            try:
                return generate(*args, **kwargs)
            finally:
                self.encoded.announce({})

        return checked

    def _concerned(self, given: Mapping[str, Any]) -> bool:
        """Whether a call brings what is going to be compressed, or goes on with what was."""
        return (
            self.adapter.tower is None
            or any(value is not None and (name.startswith("pixel_values") or name == "mm_encoder_outputs")
                   for name, value in given.items())
            or bound_request(cache_in(given)) is not None
        )  # fmt: skip

    def _announce(self, given: Mapping[str, Any]) -> None:
        """Tell how many placeholders there are, so that images that do not fill them are refused before they are encoded."""
        kinds = kinds_in({name: value for name, value in given.items() if name != "mm_encoder_outputs"})
        if kinds:
            ids = given.get("inputs") if given.get("input_ids") is None else given["input_ids"]
            own = own_part({**given, "input_ids": ids}, generating=True)
            masks = self.placeholders(own["input_ids"], own.get("inputs_embeds"), kinds)
            self.encoded.announce({kind: masks[kind] for kind in kinds & masks.keys()})

    def _refuse_inputs(self, given: Mapping[str, Any]) -> None:
        """Raises:
        FeatureError: inputs that are no tensors, disagree in shape, lie on another device than the model, or are numbers of
            another kind.
        """
        _refuse_shapes(given)
        decoder = self.adapter.embed or self.adapter.decoder.module
        if self.mixed is not None and not torch.is_autocast_enabled(_type_of(given)):
            raise FeatureError(self.mixed)
        embeds = given.get("inputs_embeds")
        weight = next((each for each in decoder.parameters() if each.is_floating_point()), None)
        if isinstance(embeds, Tensor) and weight is not None and embeds.dtype != weight.dtype:
            raise FeatureError(
                f"inputs_embeds are {embeds.dtype}, but the language model is {weight.dtype}: give "
                f"inputs_embeds.to({weight.dtype})"
            )
        if moves_inputs(self.adapter.model):
            return
        places = {"input_ids": decoder, "inputs": decoder, "inputs_embeds": decoder}
        if self.adapter.tower is not None:
            places |= dict.fromkeys(("pixel_values", "pixel_values_videos"), self.adapter.tower.module)
        for name, module in places.items():
            value, device = given.get(name), device_of(module)
            if isinstance(value, Tensor) and device is not None and value.device != device:
                raise FeatureError(
                    f"{name} lies on {value.device}, but the model that reads it on {device}: move the inputs with "
                    "inputs.to(model.device)"
                )

    def _refuse_ways(self, given: Mapping[str, Any], settings: Any) -> None:
        assisted = [name for name in ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")
                    if _setting(name, given, settings)]  # fmt: skip
        if assisted:
            raise UnsupportedError(
                f"{assisted[0]}: assisted decoding takes tokens back, and a compressed cache cannot be cropped: generate without "
                "assistant model and prompt lookup"
            )
        if _setting("prefill_chunk_size", given, settings) is not None:
            raise UnsupportedError(
                "prefill_chunk_size: chunked prefill is not supported while attached, since a prompt is compressed as a whole: "
                "leave it out"
            )

    def _refuse_cache(self, given: Mapping[str, Any], settings: Any) -> None:
        refuse_implementation(_setting("cache_implementation", given, settings), self.policy)
        cache = cache_in(given)
        if cache is not None and bound_request(cache) is None and cache.get_seq_length() == 0:
            refuse_unfit(cache, self.policy)
        if cache is None and self.policy is not None and _setting("use_cache", given, settings) is False:
            raise UnsupportedError(
                f"cache policy '{self.policy}' has no cache to act on: run with use_cache=True, or leave it out"
            )


def _refuse_shapes(given: Mapping[str, Any]) -> None:
    """Raises:
    FeatureError: inputs that are no tensors, or whose shapes disagree.
    """
    for name, value in given.items():
        known = name in ("inputs", "input_ids", "inputs_embeds") or name.startswith("pixel_values")
        if known and value is not None and not isinstance(value, Tensor):
            raise FeatureError(
                f"{name} is a {type(value).__name__}, expected a tensor: call the processor with return_tensors='pt'"
            )
    ids = given.get("inputs") if given.get("input_ids") is None else given["input_ids"]
    if ids is not None and ids.dim() != 2:
        raise FeatureError(
            f"input_ids have shape {tuple(ids.shape)}, expected [batch, tokens]: one prompt is input_ids[None]"
        )
    tokens, mask = given.get("inputs_embeds") if ids is None else ids, given.get("attention_mask")
    if tokens is None or not isinstance(mask, Tensor) or mask.dim() != 2:
        return
    if mask.shape[0] != tokens.shape[0] or mask.shape[1] < tokens.shape[1]:
        raise FeatureError(
            f"attention_mask has shape {tuple(mask.shape)}, but there are {tokens.shape[1]} tokens in each of {tokens.shape[0]} "
            "prompts: give one number for every token, those in the cache included"
        )


def _setting(name: str, given: Mapping[str, Any], settings: Any) -> Any:
    """A generation setting: as given to the call, else as configured."""
    return given[name] if given.get(name) is not None else getattr(settings, name, None)


def _type_of(given: Mapping[str, Any]) -> str:
    return next((value.device.type for value in given.values() if isinstance(value, Tensor)), "cpu")


def _mixed(adapter: Adapter) -> str | None:
    """Why a model with weights of several dtypes cannot run without autocast, or None.

    A vision part and a language part may each have their own: models cast between the two.
    """
    body = adapter.decoder
    head = getattr(adapter.model, "get_output_embeddings", lambda: None)()
    parts: dict[str, list[tuple[str, nn.Module | None]]] = {
        "language model": [("embeddings", adapter.embed), ("layers", body.layers[0]), ("output head", head)]
    }
    if adapter.tower is not None:
        parts["vision part"] = [("tower", adapter.tower.blocks[0].module), ("projector", adapter.tower.exit)]
    for whole, modules in parts.items():
        found = {name: dtype for name, module in modules if (dtype := _dtype(module)) is not None}
        if len(set(found.values())) > 1:
            each = ", ".join(f"{name} {dtype}" for name, dtype in found.items())
            return f"the {whole} has weights of several dtypes ({each}): load the model in one dtype, or run under torch.autocast"
    return None


def _dtype(module: nn.Module | None) -> torch.dtype | None:
    """Of a module's first weight matrix; None where it has none in floating point (quantized weights)."""
    if module is None:
        return None
    matrices = (each for each in module.parameters() if each.dim() >= 2)
    first = next(matrices, None)
    return first.dtype if first is not None and first.is_floating_point() and first.dtype.itemsize > 1 else None
