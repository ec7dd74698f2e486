"""What being attached costs when nothing is compressed: prefills of a 16-layer model of each family, in turns with and without
a pipeline of three times none. Models are random, 512 wide, and prompts short: what being attached costs is fixed, so that the
share of a real model is less.

The time is the processor time of the thread, to which other programs of the machine add little. Each round measures both sides,
twice and in mirrored order, and gives one ratio; the overhead is the median of the ratios, with the interval that holds it in 95
of 100 repeats (order statistics, no assumption about the noise). Families take turns until the time is up.

    python -m benchmarks.attach --minutes 3.5 --out benchmarks/results/attach.json
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.records import machine
from tests.models.families import families
from tokcomp import Pipeline

LAYERS, WIDER = 16, 16
FEWEST = 12  # rounds, below which the interval of a median says little


def deep(model: Any) -> Any:
    """The same model with 16 language-model layers of 512 numbers instead of 32."""
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    for field in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        setattr(text, field, getattr(text, field) * WIDER)
    for part, field in ((config.vision_config, "out_hidden_size"), (config.vision_config, "projection_dim"),
                        (config, "projection_dim"), (config, "hidden_size")):  # fmt: skip
        if field in vars(part):
            setattr(part, field, text.hidden_size)
    if config.model_type == "qwen2_vl":
        config.vision_config.hidden_size = text.hidden_size  # the merger's output
    if getattr(text, "layer_types", None):
        text.layer_types = (text.layer_types * LAYERS)[:LAYERS]
    text.num_hidden_layers = LAYERS
    torch.manual_seed(0)
    return type(model)(config).eval()


def prefill_of(name: str) -> tuple[Any, Callable[[], float]]:
    """The family's model, and a prefill that tells its seconds of processor time."""
    family = families()[name]
    model, sample = deep(family.model()), family.sample(1 if name.endswith("scaled") else 2, 0)

    def prefill() -> float:
        start = time.thread_time()
        model(**sample, use_cache=True)
        return time.thread_time() - start

    return model, prefill


def measured(model: Any, prefill: Callable[[], float]) -> tuple[float, float]:
    """Seconds without and with, twice each in mirrored order, so that a drift of the machine's speed weighs on both."""
    plain = prefill()
    with Pipeline().attach(model):
        attached = prefill() + prefill()
    return (plain + prefill()) / 2, attached / 2


def interval(values: list[float]) -> tuple[float, float]:
    """The order statistics between which the median lies with 95 % (binomial, normal approximation)."""
    n, ordered = len(values), sorted(values)
    reach = 1.96 * math.sqrt(n) / 2
    return ordered[max(0, math.floor(n / 2 - reach))], ordered[min(n - 1, math.ceil(n / 2 + reach))]


@torch.inference_mode()
def compare(names: list[str], minutes: float) -> dict[str, dict[str, float]]:
    """By family the seconds of a prefill without and with, the overhead, its interval and the number of rounds."""
    end = time.monotonic() + 60 * minutes
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    while not all(rounds.values()) or time.monotonic() < end:
        for name in names:
            if rounds[name] and time.monotonic() > end:
                break
            model, prefill = prefill_of(name)  # built anew for each turn: all of them together would not fit everywhere
            for _ in range(3):
                prefill()
            stop = time.monotonic() + 6 * minutes / len(names)
            while len(rounds[name]) < FEWEST or time.monotonic() < stop:
                rounds[name].append(measured(model, prefill))
    found = {}
    for name, pairs in rounds.items():
        ratios = [attached / plain - 1 for plain, attached in pairs]
        low, high = interval(ratios)
        found[name] = {"plain": median(plain for plain, _ in pairs), "attached": median(each for _, each in pairs),
                       "overhead": median(ratios), "low": low, "high": high, "rounds": len(pairs)}  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.5, help="for all families together")
    parser.add_argument("--family", nargs="*", default=None)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = compare(options.family or list(families()), options.minutes)
    for name, row in found.items():
        spread = f"{100 * row['low']:+.2f} to {100 * row['high']:+.2f}"
        print(
            f"{name:24} {1e3 * row['plain']:8.2f} ms  {100 * row['overhead']:+6.2f} %  ({spread}, {row['rounds']} rounds)"
        )
    if options.out is not None:
        record = {"machine": machine(torch.device("cpu")), "layers": LAYERS, "families": found}
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
