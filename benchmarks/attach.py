"""What being attached costs when nothing is compressed: prefills of a 16-layer model of each family, in turns with and without
a pipeline of three times none. Models are random, 512 wide, and prompts short: what being attached costs is fixed, so that the
share of a real model is less.

    python -m benchmarks.attach --rounds 60 --out benchmarks/results/attach.json
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tests.models.families import families
from tokcomp import Pipeline

LAYERS, WIDER = 16, 16


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


@torch.inference_mode()
def compare(name: str, rounds: int) -> dict[str, float]:
    """Median seconds of a prefill without and with, and the median of their ratios by round."""
    family = families()[name]
    model, sample = deep(family.model()), family.sample(2, 0)

    def prefill() -> float:
        start = time.perf_counter()
        model(**sample, use_cache=True)
        return time.perf_counter() - start

    for _ in range(5):
        prefill()
    plain, attached = [], []
    for number in range(rounds):
        # Who goes first changes, so that a drift of the machine's speed weighs on both.
        for side in (0, 1) if number % 2 else (1, 0):
            if side == 0:
                plain.append(prefill())
            else:
                with Pipeline().attach(model):
                    attached.append(prefill())
    ratio = median(one / other for one, other in zip(attached, plain, strict=True))
    return {"plain": median(plain), "attached": median(attached), "overhead": ratio - 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--family", nargs="*", default=None)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for name in options.family or families():
        found[name] = compare(name, options.rounds)
        print(f"{name:24} {1e3 * found[name]['plain']:8.2f} ms  {100 * found[name]['overhead']:+6.2f} %", flush=True)
    if options.out is not None:
        record = {"layers": LAYERS, "rounds": options.rounds, "torch": torch.__version__, "families": found}
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
