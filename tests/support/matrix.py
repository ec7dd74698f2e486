"""What works where: every family x strategy x way of use, run on tiny random models.

    python -m tests.support.matrix            # all of it, to tokcomp/models/support.json

A cell is ``yes`` after its checks passed, a refusal with its reason where tokcomp raised one of its own errors, and a failure
otherwise. The docs page and ``tokcomp list models`` read the file; no cell is typed by hand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests.models.families import Family, families
from tests.runner.conversation import answer, comparable, converse, reference, whole
from tests.tiny_models import cached, generate
from tokcomp import Pipeline, __version__
from tokcomp.errors import TokcompError
from tokcomp.models import support
from tokcomp.models.adapter import find_adapter
from tokcomp.registry import REGISTRIES
from tokcomp.runner.arguments import cache_in
from tokcomp.types import debug_checks

__all__ = ["SETTINGS", "cell", "measure", "pipeline_of", "strategies"]

# Settings at which the tiny models (4 tower blocks, 5 layers, some 16 tokens) lose some tokens, and not all.
SETTINGS: dict[str, dict[str, Any]] = {
    "vision/mustdrop": {"threshold": 0.6, "merge_layer": 1},
    "vision/tome": {"r": 2},
    "prefill/mustdrop": {"layers": (1, 2), "global_threshold": 0.03, "individual_threshold": 0.05},
    "cache/h2o": {"heavy_tokens": 8, "recent_tokens": 6},
    "cache/streaming_llm": {"recent_tokens": 10},
}
WAYS = ("one image", "batch", "several images", "video", "beams", "second turn", "image in a later turn")


def strategies() -> list[tuple[str, str]]:
    """Stage and name of every registered strategy, ``none`` first."""
    return [("none", "none"), *((stage, name) for stage, registry in REGISTRIES.items() for name in registry)]


def pipeline_of(stage: str, name: str) -> Pipeline:
    """The pipeline of one strategy alone."""
    if stage == "none":
        return Pipeline()
    cls = REGISTRIES[stage][name]
    half = {"keep_ratio": 0.5} if "keep_ratio" in cls.model_fields and f"{stage}/{name}" not in SETTINGS else {}
    return Pipeline(**{stage: {"name": name, **half, **SETTINGS.get(f"{stage}/{name}", {})}})


def cell(family: Family, pipeline: Pipeline, way: str) -> str | None:
    """``yes``, ``refused: reason`` or ``failed: what``; None where the family has no such input."""
    if way == "video" and family.video is None:
        return None
    model = _trained_looking(family)
    try:
        with torch.no_grad(), debug_checks():
            _WAYS[way](model, family, pipeline)
    except TokcompError as error:
        return f"refused: {str(error).splitlines()[0]}"
    except Exception as error:  # a cell that fails is a result, too
        return f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return "yes"


@cache
def _trained_looking(family: Family) -> Any:
    """The family's model; where it normalises keys, with weights there: else all keys are of one length, and what goes by
    their length (knorm) has only ties to go by."""
    model = family.build("sdpa")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("k_norm.weight"):
                parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return model


def _one(model: Any, family: Family, pipeline: Pipeline) -> None:
    _answers(model, family.sample(1, 0), pipeline, images=1)


def _several(model: Any, family: Family, pipeline: Pipeline) -> None:
    _answers(model, family.sample(3, 1), pipeline, images=3)


def _video(model: Any, family: Family, pipeline: Pipeline) -> None:
    assert family.video is not None
    _answers(model, family.video(0), pipeline, images=1)


def _answers(model: Any, sample: dict[str, Any], pipeline: Pipeline, *, images: int) -> None:
    """Finite logits, the images found, never more tokens than there were; all of them where nothing compresses."""
    with pipeline.attach(model) as trace:
        out = generate(model, 3, **sample)
    record = trace.last
    assert bool(torch.isfinite(torch.cat(out.logits)).all()), "logits are not finite"
    assert record.images_of[0] == images or record.batch_size == 1, f"{record.images_of} images"
    total, kept = record.image_tokens[0], len(record.kept[-1][0])
    assert 0 < kept <= total, f"{kept} of {total} tokens"
    if pipeline == Pipeline():
        dense = generate(model, 3, **sample)
        assert torch.equal(torch.cat(out.logits), torch.cat(dense.logits)), "the model is not as it was"


def _batch(model: Any, family: Family, pipeline: Pipeline) -> None:
    samples = [family.sample(1, 0), family.sample(2, 1)]
    with pipeline.attach(model):
        whole = generate(model, 2, **family.batch(samples))
        for i, sample in enumerate(samples):
            one = generate(model, 2, **sample)
            for mine, ours in zip(one.logits, whole.logits, strict=True):
                torch.testing.assert_close(mine[0], ours[i], atol=1e-4, rtol=0)


def _beams(model: Any, family: Family, pipeline: Pipeline) -> None:
    """Beams of a batch are those of its samples."""
    samples = [family.sample(1, 0), family.sample(1, 2)]
    options = {"num_beams": 2, "output_scores": True}
    with pipeline.attach(model):
        whole = generate(model, 3, **family.batch(samples), **options)
        for i, sample in enumerate(samples):
            one = generate(model, 3, **sample, **options)
            torch.testing.assert_close(one.sequences_scores[0], whole.sequences_scores[i], atol=1e-3, rtol=0)


def _second_turn(model: Any, family: Family, pipeline: Pipeline) -> None:
    """Text that follows on the compressed cache: read at once it gives what it gives token by token."""
    sample, later = family.sample(1, 0), torch.arange(5, 9)[None]
    with pipeline.attach(model):
        out = model(**sample, use_cache=True)
        at_once = model(input_ids=later, use_cache=True, **cached(model, cache_in(out))).logits
        cache = cache_in(model(**sample, use_cache=True))
        single = [model(input_ids=later[:, i : i + 1], use_cache=True, **cached(model, cache)).logits for i in range(4)]
    assert bool(torch.isfinite(at_once).all()), "logits are not finite"
    if pipeline.cache is None or not pipeline.cache.decodes():
        torch.testing.assert_close(at_once, torch.cat(single, dim=1), atol=1e-4, rtol=0)


def _later_image(model: Any, family: Family, pipeline: Pipeline) -> None:
    """A new image after an answer, on the compressed cache: its tokens are counted, and the states of all turns are those of the
    whole conversation at full length in which dropped tokens are masked out."""
    turns = [family.sample(1, 0), answer(2, 1), family.sample(1, 2), answer(2, 3)]
    with pipeline.attach(model) as trace:
        heard = converse(model, turns, trace)
    assert all(bool(torch.isfinite(turn.hidden).all()) for turn in heard), "states are not finite"
    assert len(trace.requests) == 2, f"{len(trace.requests)} prompts were recorded"
    total, kept = trace.last.image_tokens[0], len(trace.last.kept[-1][0])
    assert 0 < kept <= total, f"{kept} of {total} tokens"
    if pipeline == Pipeline():
        for got, want in zip(heard, converse(model, turns), strict=True):
            assert torch.equal(got.hidden, want.hidden), "the model is not as it was"
    elif comparable(pipeline, trace):
        for got, want in zip(heard, reference(model, whole(family, turns), heard, pipeline), strict=True):
            torch.testing.assert_close(got.hidden.masked_fill(want == 0, 0.0), want, atol=1e-4, rtol=0)


_WAYS: dict[str, Callable[[Any, Family, Pipeline], None]] = {
    "one image": _one, "batch": _batch, "several images": _several, "video": _video, "beams": _beams,
    "second turn": _second_turn, "image in a later turn": _later_image,
}  # fmt: skip


def measure(names: Iterable[str], chosen: Iterable[tuple[str, str]], ways: Iterable[str] = WAYS) -> dict[str, Any]:
    """The cells of some families, strategies and ways of use, and what each family is."""
    import transformers

    found: dict[str, Any] = {"version": __version__, "transformers": transformers.__version__, "torch": torch.__version__,
                             "ways": list(WAYS), "families": {}, "cells": {}}  # fmt: skip
    for name in names:
        family = families()[name]
        model = _trained_looking(family)
        adapter = find_adapter(model)
        found["families"][name] = {
            "class": type(model).__name__,
            "cls_token": adapter.tower is not None and adapter.tower.has_cls,
        }
        for stage, strategy in chosen:
            pipeline = pipeline_of(stage, strategy)
            found["cells"].setdefault(f"{stage}/{strategy}", {})[name] = {
                way: result for way in ways if (result := cell(family, pipeline, way)) is not None
            }
        print(f"{name}: done", flush=True)  # noqa: T201
    return found


def _renewed(before: dict[str, dict[str, str]], now: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """The cells of a strategy, by family and way, with those of ``now`` in the place of what was there."""
    both = {family: {**before.get(family, {}), **now.get(family, {})} for family in {**before, **now}}
    return {family: {way: ways[way] for way in WAYS if way in ways} for family, ways in both.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", nargs="*", help="only these; the rest of the file stays as it is")
    parser.add_argument("--way", nargs="*", choices=WAYS, help="only these ways of use")
    parser.add_argument("--out", type=Path, default=support.FILE)
    options = parser.parse_args()
    found = measure(options.family or families(), strategies(), options.way or WAYS)
    if (options.family or options.way) and options.out.exists():
        before = json.loads(options.out.read_text(encoding="utf-8"))
        found["families"] = {**before["families"], **found["families"]}
        found["cells"] = {name: _renewed(before["cells"].get(name, {}), row) for name, row in found["cells"].items()}
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    failed = [(s, f, w, r) for s, row in found["cells"].items() for f, ways in row.items() for w, r in ways.items()
              if r.startswith("failed")]  # fmt: skip
    for line in failed:
        print(*line)  # noqa: T201
    print(f"{len(failed)} failures")  # noqa: T201


if __name__ == "__main__":
    main()
