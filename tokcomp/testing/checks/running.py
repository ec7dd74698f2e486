"""The rule about models: what shows only when the runner applies the decisions."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tokcomp.errors import CompatibilityError, StateError, TokcompError
from tokcomp.pipeline import Pipeline
from tokcomp.testing.benches import Bench
from tokcomp.testing.instances import fresh
from tokcomp.testing.report import Breach, Holding, Unchecked
from tokcomp.testing.search import Search
from tokcomp.testing.tiny import batch, pixels, prompt, tiny_model
from tokcomp.types import UndeclaredSignalError, debug_checks

__all__ = ["model"]

_STEPS = 2
_TOLERANCE = 2e-4


@lru_cache(maxsize=1)
def _tiny() -> tuple[Any, list[dict[str, Tensor]], Tensor]:
    """A model, three prompts of different lengths with different images, and the first one's logits without a strategy."""
    built = tiny_model(sharp=2.0)
    flat = torch.nn.functional.interpolate(pixels(seed=3, size=12), size=84)
    rows = [{"input_ids": prompt(36, *shape, seed=number), "pixel_values": image}
            for number, (shape, image) in enumerate(zip([(4, 6), (9, 3), (2, 11)],
                                                        [pixels(seed=1), pixels(seed=2), flat], strict=True))]  # fmt: skip
    with torch.no_grad():
        return built, rows, built(**rows[0]).logits


def model(strategy: Any, bench: Bench, search: Search) -> dict[str, str]:
    """A tiny random LLaVA: three prompts in a batch and one by one, twice."""
    tiny, rows, plain = _tiny()
    mixed = {
        **batch(*(row["input_ids"] for row in rows)),
        "pixel_values": torch.cat([row["pixel_values"] for row in rows]),
    }
    try:
        with Pipeline(**{bench.stage: fresh(strategy)}).attach(tiny) as trace, debug_checks(), torch.no_grad():
            together = _generate(tiny, mixed)
            alone = [_generate(tiny, row) for row in rows]
            again = _generate(tiny, mixed)
            records = list(trace.requests)
    except CompatibilityError as refusal:
        raise Unchecked(f"the tiny model is refused: {refusal}") from refusal
    except StateError as error:
        raise Holding() from error
    except UndeclaredSignalError as error:
        raise Unchecked("it reads a signal that it does not declare: see the rule 'needs'") from error
    except Exception as error:
        raise Breach(f"in a model it raises {type(error).__name__}: {' '.join(str(error).split())}",
                     do=_do(error)) from error  # fmt: skip
    _compare(together, alone, again, records)
    with torch.no_grad():
        after = tiny(**rows[0]).logits
    if not torch.equal(after, plain):
        _tiny.cache_clear()
        raise Breach("the model gives other logits after the pipeline has been taken off than before",
                     do="change nothing that belongs to the model: no in-place operation on what a view shows")  # fmt: skip
    return _figures(bench.stage, records[0])


def _do(error: Exception) -> str:
    if isinstance(error, TokcompError):
        return "do as the message says"
    return (
        "run it with tokcomp.testing.tiny_model() and look at the traceback: the views here are those of a real prompt"
    )


def _generate(tiny: Any, inputs: dict[str, Any]) -> Any:
    return tiny.generate(**inputs, max_new_tokens=_STEPS, min_new_tokens=_STEPS, do_sample=False,
                         return_dict_in_generate=True, output_logits=True)  # fmt: skip


def _compare(together: Any, alone: list[Any], again: Any, records: list[Any]) -> None:
    for first, second in zip(together.logits, again.logits, strict=True):
        if not torch.equal(first, second):
            raise Breach("the same prompts give other logits the second time", do=(
                "keep nothing on the strategy between requests, and draw no random numbers but from view.digest"))  # fmt: skip
    for row, (one, record) in enumerate(zip(alone, records[1:4], strict=True)):
        for layer, kept in enumerate(record.kept):
            if not torch.equal(kept[0], records[0].kept[layer][row]):
                raise Breach(f"prompt {row} keeps other vision tokens in a batch than alone, from layer {layer} on",
                             do="let every sample decide for itself, by view.valid and view.counts")  # fmt: skip
        for step, logits in enumerate(one.logits):
            gap = float((logits[0] - together.logits[step][row]).abs().max())
            if not gap < _TOLERANCE:
                raise Breach(f"prompt {row} gets other logits in a batch than alone (by {gap:.1e}, token {step})",
                             do="let every sample decide for itself, by view.valid and view.counts")  # fmt: skip


def _figures(stage: str, record: Any) -> dict[str, str]:
    if stage == "cache":
        lengths = [str(tuple(int(length) for length in record.cache_lengths[layer])) for layer in (0, -1)]
        return {"cache entries": f"{lengths[0]} in the first layer, {lengths[1]} in the last"}
    last = tuple(int(count) for count in record.vision_tokens[-1])
    return {"vision tokens": f"{last} of {tuple(int(count) for count in record.image_tokens)} enter the last layer"}
