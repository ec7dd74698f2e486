"""What a pipeline saves on a model, counted from the model's sizes: no weights, no image, no network for shipped shapes.

  tokcomp flops model=llava-1.5-7b preset=mustdrop-64
  tokcomp flops model=llava-1.5-7b vision=tome prefill=fastv text_tokens=40 new_tokens=100
  tokcomp flops model=checkpoint model.path=/data/my-llava preset=fastv
  tokcomp flops preset=mustdrop-64 assume.vision=315
  tokcomp flops preset=fastv new_tokens=128 batch=4 dtype=bfloat16 device_spec=h200

A multiply-add is 2 FLOPs. Where a strategy's counts depend on the image, the published number is assumed, or what you
give with assume.vision, assume.prefill, assume.cache; every assumption is printed."""

from __future__ import annotations

import argparse

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", default=[], metavar="name=value", help="options and settings")


def execute(options: argparse.Namespace) -> int:
    from rich.console import Console

    from tokcomp.experiment.compose import compose
    from tokcomp.experiment.prediction import PredictionConfig, predict
    from tokcomp.report.prediction import cost_table, reduction_table

    config = PredictionConfig.resolve(compose(options.overrides, config_name="flops"))
    prediction = predict(config)
    console = Console()
    console.print(cost_table(prediction))
    if prediction.reductions:
        console.print(reduction_table(prediction))
    for line in prediction.assumptions or ("no assumption was needed: all counts follow from the strategies' fields",):
        console.print(f"- {line}", highlight=False, markup=False)
    return 0
