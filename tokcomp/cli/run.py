"""Answer a benchmark with the dense and with the compressed model; prints a table and writes result.json.

The rest of the line is Hydra's: choices of options (group=option) and settings (group.setting=value).

  tokcomp run vision=tome prefill=fastv cache=h2o model=tiny benchmark=scenes
  tokcomp run preset=mustdrop vision=none benchmark.samples=50 hydra.run.dir=out/mine
  tokcomp run model=checkpoint model.path=/data/my-llava device=cuda dtype=float16 preset=fastv

`tokcomp list` names the options of every group; --cfg prints the configuration and runs nothing."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokcomp.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console

    from tokcomp.experiment.run import Progress

__all__ = ["add_arguments", "execute"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", default=[], metavar="name=value", help="options and settings")
    parser.add_argument("--cfg", action="store_true", help="print the resolved configuration and its hash; run nothing")


def execute(options: argparse.Namespace) -> int:
    """Check the whole configuration first, then hand over to Hydra, which makes the run's folder."""
    from tokcomp.deprecation import current_overrides
    from tokcomp.experiment.compose import compose
    from tokcomp.experiment.config import RunConfig, config_hash
    from tokcomp.experiment.environment import refuse_unusable

    overrides = current_overrides(options.overrides)
    config = RunConfig.resolve(compose(overrides))
    if options.cfg:
        from omegaconf import OmegaConf

        print(OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json"))).rstrip())
        print(f"# config_hash: {config_hash(config)}")
        return 0
    refuse_unusable(config.device)
    _refuse_unwritable(overrides)
    _run_with_hydra(overrides)
    return 0


def _refuse_unwritable(overrides: Sequence[str]) -> None:
    """A folder that cannot be written is said before the run, not after it."""
    given = dict(override.split("=", 1) for override in overrides if override.startswith("hydra.run.dir="))
    # The part before what Hydra fills in (${now:...}) can be tried now.
    folder = Path(given.get("hydra.run.dir", "outputs").strip("'\"").partition("${")[0] or ".")
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    try:
        if given:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"hydra.run.dir={folder} cannot be made: {error.strerror}") from error
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigurationError(f"{there} cannot be written: give another hydra.run.dir")


def _run_with_hydra(overrides: Sequence[str]) -> None:
    import hydra

    from tokcomp.experiment.compose import VERSION_BASE
    from tokcomp.experiment.paths import config_dir

    failure: list[BaseException] = []

    # No annotations here: Hydra calls this and nobody else does.
    def job(settings: Any) -> None:
        try:
            _job(settings)
        except BaseException as error:
            # Hydra would print its own trace and exit; what went wrong is told by main().
            failure.append(error)

    with _arguments(overrides):
        hydra.main(version_base=VERSION_BASE, config_path=str(config_dir()), config_name="run")(job)()
    if failure:
        raise failure[0]


@contextmanager
def _arguments(overrides: Sequence[str]) -> Iterator[None]:
    """Hydra reads ``sys.argv``."""
    before, sys.argv = sys.argv, ["tokcomp run", *overrides]
    try:
        yield
    finally:
        sys.argv = before


def _job(settings: Any) -> None:
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf
    from rich.console import Console
    from transformers.utils import logging

    from tokcomp.experiment.axes import plain
    from tokcomp.experiment.config import RunConfig
    from tokcomp.experiment.run import RESULT, run_recorded
    from tokcomp.report.tables import accuracy_table, run_table

    logging.disable_progress_bar()  # one progress bar is enough
    config = RunConfig.resolve(OmegaConf.to_container(settings, resolve=True))  # type: ignore[arg-type]
    folder = Path(HydraConfig.get().runtime.output_dir)
    console = Console()
    with _shown(console) as progress:
        result = run_recorded(
            config, folder, progress=progress, overrides=[plain(text) for text in HydraConfig.get().overrides.task]
        )
    console.print(run_table(result))
    console.print(accuracy_table(result))
    console.print(f"written to {folder / RESULT}", soft_wrap=True, highlight=False)


@contextmanager
def _shown(console: Console) -> Iterator[Progress]:
    """A progress bar per step of the run."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bars:

        def begin(step: str, total: int | None) -> Any:
            task = bars.add_task(step, total=total or 1)
            return lambda done: bars.advance(task, done)

        yield begin
