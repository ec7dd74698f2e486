"""Compares cache policies on long answers at equal bytes: what a step reads, averaged over the steps of an answer.

    python docs/long_answers.py                                    # all policies at 45 and 40 % of the dense bytes
    python docs/long_answers.py --benchmark scenes-hard --samples 120
    python docs/long_answers.py --only output_aware tova --shares 40

A policy that acts in decoding holds more at first and less later than one that acts once; comparing what they hold after the
prefill would say nothing. Each policy's number of entries follows from the length of the prompts and of the dense answers;
what it comes to is measured, and stands in the table. Records go to docs/results/long_answers, from which the site's table is
made.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from tokcomp.benchmarks.base import Sample
from tokcomp.experiment.answers import Answer, answer_all
from tokcomp.experiment.compose import compose
from tokcomp.experiment.config import RunConfig
from tokcomp.experiment.load import load_model
from tokcomp.pipeline import Pipeline

RESULTS = Path(__file__).resolve().parent / "results" / "long_answers"
SHARES = (45, 40)

Rule = Callable[[int, int], dict[str, Any]]
"""From the entries of a constant cache, and the vision entries left by a cut after the first step, to a policy."""


def once(name: str, **fields: Any) -> Rule:
    """A policy that acts after the prefill; the cache grows from then on."""
    return lambda entries, vision: {"name": name, "keep_tokens": entries, **fields}


def wrapped(name: str, base: str, **fields: Any) -> Rule:
    return lambda entries, vision: {"name": name, "base": {"name": base, "keep_tokens": entries}, **fields}


def aware(**fields: Any) -> Rule:
    """Ours: the whole prompt for the first step, then the vision entries that are left."""
    return lambda entries, vision: {"name": "output_aware", "start": 1, "every": 1, "final_tokens": vision, **fields}


def constant(name: str, **fields: Any) -> Rule:
    """A policy that keeps as many entries at every step."""
    return lambda entries, vision: {"name": name, "keep_tokens": entries, **fields}


GROWING: dict[str, Rule] = {
    "random, text kept": once("random", keep_text=True),
    "snapkv": once("snapkv"),
    "snapkv, text kept": once("snapkv", keep_text=True),
    "pyramidkv": once("pyramidkv"),
    "adakv (snapkv)": wrapped("adakv", "snapkv"),
    "keydiff": once("keydiff"),
    "expected_attention": once("expected_attention"),
    "lookm": once("lookm"),
    "merging (snapkv)": wrapped("merging", "snapkv"),
}
CONSTANT: dict[str, Rule] = {
    "tova": constant("tova"),
    "tova, text kept": constant("tova", keep_text=True),
    "h2o, text kept": lambda entries, vision: {
        "name": "h2o",
        "heavy_tokens": entries - 1,
        "recent_tokens": 1,
        "keep_text": True,
    },
}
AWARE: dict[str, Rule] = {
    "output_aware": aware(),
    "output_aware, prompt only": aware(prior=1e6, decay=1.0),
}
LINES = {**AWARE, **CONSTANT, **GROWING}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", default="scenes", help="scenes, or scenes-hard with longer answers")
    parser.add_argument("--samples", type=int, default=90, help="questions of every run")
    parser.add_argument(
        "--shares", type=int, nargs="*", default=list(SHARES), help="bytes in per cent of the dense ones"
    )
    parser.add_argument("--only", nargs="*", default=list(LINES), help="policies, by the names of the table's lines")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the records go")
    options = parser.parse_args()
    kinds = "describe_rows,describe_columns" if options.benchmark != "scenes" else "list_digits,list_colours,describe"
    shared = ["experiment=long_answers", "cache=none", f"benchmark={options.benchmark}", f"benchmark.kinds=[{kinds}]",
              f"benchmark.samples={options.samples}"]  # fmt: skip
    config = RunConfig.resolve(compose(shared))
    loaded = load_model(config.model, device=config.device, dtype=config.torch_dtype)
    samples = config.benchmark.load()

    def ask(pipeline: Pipeline | None) -> list[Answer]:
        return answer_all(loaded, samples, batch_size=config.benchmark.batch_size,
                          max_new_tokens=config.benchmark.max_new_tokens, pipeline=pipeline)  # fmt: skip

    dense = ask(None)
    write(options.results, options.benchmark, config, samples, "dense", 100, None, dense, dense)
    for share in options.shares:
        entries = budgets(dense, share)
        for name in options.only:
            pipeline = Pipeline(cache=LINES[name](*entries["growing" if name in GROWING else "constant"]))
            write(options.results, options.benchmark, config, samples, name, share, pipeline, ask(pipeline), dense)
    return 0


def budgets(dense: list[Answer], share: int) -> dict[str, tuple[int, int]]:
    """What a cache may hold so that the mean over all steps of all answers is ``share`` per cent of the dense one: the
    entries of each policy, and for ours the vision entries after the first step.

    Raises:
        SystemExit: not even the text fits beside a first step that reads everything.
    """
    steps = [len(answer.work.decode_lengths) for answer in dense]
    mean = share / 100 * fmean(mean_entries(answer) for answer in dense)
    # A step reads its own entry too: t entries more than after the prefill at step t, one more than a constant size. Ours
    # reads everything at the first step, then the text, the t entries of the answer and the vision entries that are left.
    given = fmean((answer.work.layer_tokens[0] + answer.work.text_tokens * (n - 1) + n * (n + 1) / 2) / n
                  for answer, n in zip(dense, steps, strict=True))  # fmt: skip
    vision = (mean - given) / fmean((n - 1) / n for n in steps)
    if vision < 1:
        raise SystemExit(f"{share} % is less than output_aware needs: its first step reads the whole prompt")
    return {
        "growing": (round(mean - fmean((n + 1) / 2 for n in steps)), round(vision)),
        "constant": (round(mean - 1), round(vision)),
    }


def mean_entries(answer: Answer) -> float:
    """Entries that a step of the answer reads in a layer, mean over steps and layers."""
    return fmean(fmean(step) for step in answer.work.decode_lengths)


def write(folder: Path, benchmark: str, config: RunConfig, samples: list[Sample], name: str, share: int,
          pipeline: Pipeline | None, answers: list[Answer], dense: list[Answer]) -> None:  # fmt: skip
    """Commit one line's record."""
    scores = [config.benchmark.score(answer.text, sample) for answer, sample in zip(answers, samples, strict=True)]
    entries = fmean(map(mean_entries, answers)) / fmean(map(mean_entries, dense))
    agreement = fmean(one.text == other.text for one, other in zip(answers, dense, strict=True))
    record = {
        "benchmark": benchmark, "line": name, "share": share, "cache": None if pipeline is None else pipeline.spec()["cache"],
        "samples": len(samples), "seed": config.seed, "bytes": entries, "agreement": agreement, "accuracy": fmean(scores),
        "new_tokens": fmean(answer.tokens.new_tokens for answer in answers),
        "by_kind": {kind: fmean(score for score, sample in zip(scores, samples, strict=True) if sample.kind == kind)
                    for kind in sorted({sample.kind for sample in samples})},
        "scores": scores,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    file = f"{benchmark}-{share:03d}-{''.join(c if c.isalnum() else '_' for c in name)}.json"
    (folder / file).write_text(json.dumps(record) + "\n", encoding="utf-8")
    sys.stderr.write(f"{name} at {share} %: bytes {entries:.3f}, accuracy {record['accuracy']:.3f}\n")


if __name__ == "__main__":
    sys.exit(main())
