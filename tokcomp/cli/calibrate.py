"""Find the setting at which a strategy meets a budget, and write it as an option file.

  tokcomp calibrate prefill=mustdrop target.equivalent_tokens=64
  tokcomp calibrate vision=tome target.flops=0.5 model=checkpoint model.path=/data/my-llava benchmark=scenes
  tokcomp calibrate prefill=fastv cache=snapkv target.kv_bytes=0.2 --out configs/cache/snapkv-fifth.yaml

The last stage that decides the cost gives way (for kv_bytes the cache, else the prefill, else the vision stage); the others
stay as they are given. Measured on the benchmark's training split, so that the questions of a run are not looked at."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokcomp.cli.output import refuse_unwritable
from tokcomp.errors import ConfigurationError

if TYPE_CHECKING:
    from tokcomp.experiment.budgets import Met

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", default=[], metavar="name=value", help="options, settings, the target")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the option file (default: configs/STAGE/NAME-TARGET.yaml)"
    )


def execute(options: argparse.Namespace) -> int:
    from rich.console import Console
    from transformers.utils import logging

    from tokcomp.experiment.budgets import meet, refuse_without_target
    from tokcomp.experiment.compose import compose
    from tokcomp.experiment.config import RunConfig
    from tokcomp.experiment.load import load_model

    overrides = [
        f"budget.{text.removeprefix('target.')}" if text.startswith("target.") else text for text in options.overrides
    ]
    config = RunConfig.resolve(compose(overrides))
    refuse_without_target(config)
    if options.out is not None:
        _make_folder(options.out)
        refuse_unwritable(options.out)
    logging.disable_progress_bar()
    console = Console()
    with console.status("calibrating"):
        met = meet(config, load_model(config.model, device=config.device, dtype=config.torch_dtype))
    assert met is not None
    out = options.out or _default_path(config, met)
    _write(out, met, f"tokcomp calibrate {' '.join(options.overrides)}")
    settings = " ".join(f"{met.stage}.{name}={_written(value)}" for name, value in met.fields.items())
    name = getattr(met.config, met.stage).name
    console.print(f"{met.stage}={name} {settings}", soft_wrap=True, highlight=False, markup=False)
    measure = config.budget.target[0] if config.budget.target else ""
    console.print(f"{measure}: {met.figure:.4g} for a target of {met.target:.4g}, {met.tried} values tried; written to {out}",
                  soft_wrap=True, highlight=False)  # fmt: skip
    return 0


def _default_path(config: Any, met: Met) -> Path:
    measure, value = config.budget.target
    name = getattr(met.config, met.stage).name.rpartition(":")[2]  # of a dotted path the class
    short = {"equivalent_tokens": "", "flops": "flops-", "kv_bytes": "kv-"}[measure]
    return Path("configs") / met.stage / f"{name}-{short}{value:g}.yaml"


def _written(value: Any) -> str:
    return "null" if value is None else str(value).replace(" ", "")


def _write(out: Path, met: Met, command: str) -> None:
    from omegaconf import OmegaConf

    strategy = getattr(met.config, met.stage)
    text = f"# {strategy.name} at a measured budget: {met.figure:.4g} for a target of {met.target:.4g}.\n#\n#   {command}\n"
    text += OmegaConf.to_yaml(OmegaConf.create(strategy.spec()))
    _make_folder(out)
    refuse_unwritable(out)
    out.write_text(text, encoding="utf-8")


def _make_folder(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{out} cannot be written: {error.strerror}: give another --out") from error
