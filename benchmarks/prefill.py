"""How much of the promised prefill speed-up each pipeline reaches on a random LLaVA, dense and compressed in one process.

    python benchmarks/prefill.py [--layers 16] [--width 512] [--repeats 9] [--out benchmarks/results/prefill.json]

The promise is the ratio of FLOPs, dense over compressed (tower, projector, decoder layers, head of one row), counted from
what each pipeline really left; reached = (measured ratio) / (promised ratio). Random weights cost what trained ones do. The
tower is sized to take the share of the FLOPs that LLaVA-1.5's takes (about 5 %).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tokcomp import Pipeline
from tokcomp.measure.flops import count
from tokcomp.measure.record import workload_from_record
from tokcomp.measure.shape import ModelShape
from tokcomp.measure.timing import clock_for, compare_times, in_turns
from tokcomp.measure.workload import dense_workload

IMAGE = 999
PIPELINES: dict[str, Pipeline] = {
    "none": Pipeline(),
    "fastv (layer 2, keep 64)": Pipeline(prefill={"name": "fastv", "layer": 2, "keep_tokens": 64}),
    "uniform 64": Pipeline(vision={"name": "uniform", "keep_tokens": 64, "layout": "1d"}),
    "tome": Pipeline(vision="tome"),
    "mustdrop": Pipeline(
        {"name": "mustdrop", "threshold": 0.02, "key_ratio": 0.14},
        {"name": "mustdrop", "global_threshold": 1.0, "individual_threshold": 1.0},
        "mustdrop",
    ),
    "h2o": Pipeline(cache="h2o"),
}
# On random weights thresholds mean nothing: MustDrop's are set so that all three stages act (some windows merge, the first
# filter leaves the key tokens only, the cache is cut) at about the equivalent tokens of FastV's row.


def build(layers: int, width: int, tower_layers: int, tower_width: int) -> LlavaForConditionalGeneration:
    """A random LLaVA with 24 x 24 = 576 image tokens."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=tower_width, intermediate_size=4 * tower_width, num_hidden_layers=tower_layers,
        num_attention_heads=tower_width // 64, image_size=336, patch_size=14, projection_dim=tower_width,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=1000, hidden_size=width, intermediate_size=width * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, max_position_embeddings=4096,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=576)
    return LlavaForConditionalGeneration(config).eval()


@torch.inference_mode()
def attainable_ms(model: Any, inputs: dict[str, Any], lengths: list[int], tower_share: float, repeats: int) -> float:
    """The time that the unmodified parts need for the same tokens: every decoder layer at its length (the plain decoder is
    timed at each distinct length), and the tower's time times the share of its FLOPs that is left.

    Small matrices run below the rate of large ones, so this, not the FLOPs, is what a runner without overhead reaches.
    """
    clock = clock_for("cpu")

    def median(call: Callable[[], Any]) -> float:
        times = []
        for _ in range(repeats + 1):
            start = clock.stamp()
            call()
            times.append(clock.seconds(start, clock.stamp()))
        return 1e3 * statistics.median(times[1:])

    decoder, width = model.model.language_model, model.config.text_config.hidden_size
    tower = median(lambda: model.model.get_image_features(pixel_values=inputs["pixel_values"]))
    by_length = {
        n: median(partial(decoder, inputs_embeds=torch.randn(1, n, width), use_cache=True)) for n in set(lengths)
    }
    return tower * tower_share + sum(by_length[n] for n in lengths) / len(lengths)


@torch.inference_mode()
def measure(model: Any, name: str, pipeline: Pipeline, inputs: dict[str, Any], repeats: int) -> dict[str, Any]:
    """One row of the table."""

    def prefill() -> None:
        model(**inputs, use_cache=True, logits_to_keep=1)

    clock = clock_for("cpu")

    def seconds(attached: Pipeline | None) -> float:
        """One prefill; attaching, which a user does once for many prompts, is not timed."""
        with nullcontext() if attached is None else attached.attach(model):
            start = clock.stamp()
            prefill()
            return clock.seconds(start, clock.stamp())

    shape = ModelShape.from_config(model.config)
    with pipeline.attach(model) as trace:
        prefill()
    record = trace.last
    text = int(inputs["input_ids"].shape[1]) - int(record.image_tokens)
    dense_count = counted = count(shape, dense_workload(shape, image_tokens=576, text_tokens=text))
    if name != "none":
        counted = count(shape, workload_from_record(record, shape, pipeline=pipeline))
    dense_flops, flops = dense_count.first_token, counted.first_token
    lengths = [int(length) for length in record.sequence_tokens]
    pairs = in_turns(lambda: seconds(None), lambda: seconds(pipeline), repeats=repeats, warmup=2)
    timing = compare_times([dense for dense, _ in pairs], [compressed for _, compressed in pairs], warmup=2)
    promised = dense_flops / flops
    attainable = attainable_ms(model, inputs, lengths, counted.tower / dense_count.tower, repeats)
    return {
        "pipeline": name,
        "spec": pipeline.spec(),
        "equivalent_tokens": float(record.equivalent_tokens),
        "dense_ms": 1e3 * timing.dense.median,
        "compressed_ms": 1e3 * timing.compressed.median,
        "ratio": timing.ratio.median,
        "ratio_quartiles": [timing.ratio.low, timing.ratio.high],
        "promised": promised,
        "reached": timing.ratio.median / promised,
        "attainable_ms": attainable,
        "of_attainable": attainable / (1e3 * timing.compressed.median),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tower-layers", type=int, default=4)
    parser.add_argument("--tower-width", type=int, default=256)
    parser.add_argument("--text", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help="run the pipelines whose name contains this")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "prefill.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = build(options.layers, options.width, options.tower_layers, options.tower_width)
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(3, 900, (options.text,), generator=generator)
    ids = torch.cat([text[: options.text // 2], torch.full((576,), IMAGE), text[options.text // 2 :]])[None]
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 336, 336, generator=generator)}
    rows = []
    print(
        f"{'pipeline':26} {'tokens':>7} {'dense ms':>9} {'ms':>8} {'ratio':>6} {'promised':>9} {'reached':>8} "
        f"{'attainable ms':>14} {'of it':>7}"
    )
    for name, pipeline in PIPELINES.items():
        if options.only and options.only not in name:
            continue
        row = measure(model, name, pipeline, inputs, options.repeats)
        rows.append(row)
        print(f"{name:26} {row['equivalent_tokens']:7.1f} {row['dense_ms']:9.1f} {row['compressed_ms']:8.1f} "
              f"{row['ratio']:6.2f} {row['promised']:9.2f} {row['reached']:8.1%} "
              f"{row['attainable_ms']:14.1f} {row['of_attainable']:7.1%}", flush=True)  # fmt: skip
    if options.only:
        return
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "only")}
    machine = {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "machine": platform.machine(),
               "torch": torch.__version__}  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"settings": settings, "machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
