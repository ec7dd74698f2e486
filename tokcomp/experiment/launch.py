"""Hands a sweep to Hydra, whose launchers run its jobs here, in other processes or on a cluster."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO, cast

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tokcomp.errors import ConfigurationError, TokcompError
from tokcomp.experiment.axes import Axes
from tokcomp.experiment.cluster import address_of, refuse_silent
from tokcomp.experiment.compose import VERSION_BASE, first_lines, own_hydra
from tokcomp.experiment.overrides import refuse_unknown, refuse_unreadable
from tokcomp.experiment.paths import config_dir
from tokcomp.experiment.worker import job
from tokcomp.registry import REGISTRIES

__all__ = ["Forget", "Launcher", "launch", "launcher_settings"]

_HERE = (".BasicLauncher", ".JoblibLauncher", ".LocalLauncher")


class Launcher(NamedTuple):
    """What runs the jobs.

    Attributes:
        settings: what else Hydra is to be told.
        here: whether all jobs run on this machine.
    """

    settings: tuple[str, ...]
    here: bool


class Forget(Callback):
    """A Hydra callback. A job returns its configurations to the sweep, which keeps them until the end, and a cluster sends
    them over the network; nobody reads them."""

    def on_job_end(self, config: Any, job_return: Any, **named: Any) -> None:
        job_return.cfg = job_return.hydra_cfg = None


def launcher_settings(axes: Axes) -> Launcher:
    """Check what Hydra is told, and that the cluster of a Ray launcher answers.

    Raises:
        ConfigurationError: an unknown launcher or setting, or a cluster that does not answer.
    """
    from hydra import compose

    try:
        with own_hydra():
            refuse_unknown(
                refuse_unreadable(_told(axes)),
                root="run",
                options=GlobalHydra.instance().config_loader().get_group_options,
            )
            config = compose("run", _told(axes), return_hydra_config=True)
            launcher = OmegaConf.to_container(config.hydra.launcher, resolve=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(first_lines(error)) from None
    assert isinstance(launcher, dict)
    target = str(launcher.get("_target_", ""))
    if not target.endswith(".RayLauncher"):
        return Launcher((), target.endswith(_HERE))
    init = launcher["ray"]["init"]
    address = address_of(init)
    if address is None:  # Ray would look for a cluster that happens to run here
        return Launcher(("hydra.launcher.ray.init.address=local",), here=True)
    refuse_silent(address, init)
    # The launcher would give the object store a size, which only whoever starts a cluster may.
    sized = () if "object_store_memory" in init else ("+hydra.launcher.ray.init.object_store_memory=null",)
    return Launcher(sized, here=False)


def _told(axes: Axes) -> list[str]:
    return [text for text in axes.hydra if not text.startswith("hydra.sweep.dir=")]


def launch(axes: Axes, settings: Sequence[str], folder: Path, name: str) -> str | None:
    """Run every combination into the store at ``folder``; ``name`` is that of the sweep, ``settings`` are those of its launcher.

    Returns:
        What made the launcher give up, or None.

    Raises:
        TokcompError: what would stop every run.
    """
    import hydra

    values = [f"{_key(group)}={','.join(_value(text) for text in group)}" for group in axes.swept.values()]
    arguments = [*_of_every_run(axes), *values, *_told(axes), *settings, f"hydra.sweep.dir='{folder}'", "hydra.sweep.subdir=.",
                 "hydra.output_subdir=null", f"hydra.job.name={name}", "hydra/job_logging=none",
                 f"+hydra.callbacks.forget._target_={__name__}.{Forget.__name__}"]  # fmt: skip
    quiet = contextlib.redirect_stderr(cast(TextIO, _WithoutHydra(sys.stderr)))
    with _arguments(["--multirun", *arguments]), _checked(), quiet:
        try:
            hydra.main(version_base=VERSION_BASE, config_path=str(config_dir()), config_name="run")(job)()
        except (KeyboardInterrupt, TokcompError):
            raise
        except Exception as error:  # a launcher's own: a worker that died, a cluster that went away
            cause = error.__cause__ or error.__context__ or error
            if isinstance(cause, TokcompError):
                raise cause from None
            return " ".join(f"{type(error).__name__}: {error}".split())[:500]
    return None


def _of_every_run(axes: Axes) -> list[str]:
    """Hydra composes once without the axes, where a setting of an option that an axis chooses is not there yet; as an axis of
    one value, it comes in with the others."""
    chosen = {key for key in axes.swept if "." not in key}
    if {"preset", "experiment"} & chosen:
        chosen |= set(REGISTRIES)
    parts = [text.partition("=") for text in axes.fixed]
    return [
        f"{key}=choice({value})"
        if equals and "." in key and key.partition(".")[0] in chosen
        else f"{key}{equals}{value}"
        for key, equals, value in parts
    ]


def _key(values: Sequence[str]) -> str:
    return values[0].partition("=")[0]


def _value(text: str) -> str:
    return text.partition("=")[2]


@contextlib.contextmanager
def _arguments(arguments: Sequence[str]) -> Iterator[None]:
    """Hydra reads ``sys.argv``, and tells its caller of exceptions only where it is asked to."""
    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = ["tokcomp sweep", *arguments], "1"
    try:
        yield
    finally:
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR")
        if full is not None:
            os.environ["HYDRA_FULL_ERROR"] = full


class _WithoutHydra:
    """Standard error without what Hydra writes about a job that stopped the sweep: its caller says it in one line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if text.startswith("Error executing job with overrides") else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _checked() -> Iterator[None]:
    """Hydra's sweeper composes every combination before the first job, only to see whether it can. The axes were checked
    part by part; all combinations of a large sweep take longer than many of its jobs."""
    theirs = Sweeper.validate_batch_is_legal
    Sweeper.validate_batch_is_legal = lambda self, batch: None
    try:
        yield
    finally:
        Sweeper.validate_batch_is_legal = theirs
