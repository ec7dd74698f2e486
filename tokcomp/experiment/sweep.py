"""A sweep: every combination of its axes, run by a Hydra launcher into one store that survives anything."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokcomp.errors import ConfigurationError, TokcompError
from tokcomp.experiment.axes import Axes, read_axes, refuse_wrong
from tokcomp.experiment.compose import VERSION_BASE, compose
from tokcomp.experiment.config import RunConfig
from tokcomp.experiment.paths import config_dir
from tokcomp.experiment.store import Store
from tokcomp.experiment.worker import execute, job
from tokcomp.registry import REGISTRIES

__all__ = ["Outcome", "default_folder", "sweep"]

_TICK = 0.5  # seconds between looks at the journal


@dataclass
class Outcome:
    """What became of a sweep's jobs.

    Attributes:
        store: where the records are. ``size``: combinations.
        found, done: keys of the records that were there, and that were made.
        keys: both, in the order of the jobs; combinations that mean the same run share one.
        failed: error by key, or by command line where no record could be made.
        notes: what else is to be told.
        broken: why the launcher gave up before the end, or None.
    """

    store: Store
    size: int
    found: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    keys: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    broken: str | None = None

    @property
    def ended(self) -> int:
        """Jobs that came to an end."""
        return len(self.found) + len(self.done) + len(self.failed)


def default_folder(axes: Axes) -> Path:
    """Where a sweep writes unless told: a folder named after what it spans, so that the same command goes on there."""
    named = "\n".join(sorted([*axes.fixed, *(value for values in axes.swept.values() for value in values)]))
    return Path("sweeps") / hashlib.sha256(named.encode()).hexdigest()[:8]


def sweep(overrides: Sequence[str], watch: Callable[[Outcome], None] = lambda outcome: None) -> Outcome:
    """Run every combination that ``overrides`` span; those whose good record is in the store are left alone.

    Args:
        overrides: what a user writes after ``tokcomp sweep``.
        watch: told now and then how far the sweep is.

    Raises:
        ConfigurationError: a part of the sweep that cannot be run (told before any job), or a folder that cannot be
            written.
    """
    axes = read_axes(overrides)
    refuse_wrong(axes)
    given = dict(text.split("=", 1) for text in axes.hydra if text.startswith("hydra.sweep.dir="))
    folder = Path(given.get("hydra.sweep.dir", str(default_folder(axes))).strip("'\"")).absolute()
    if "${" in str(folder):
        raise ConfigurationError(
            f"hydra.sweep.dir={folder}: give a plain folder, so that the same command goes on there"
        )
    store = Store(folder)
    name = f"{os.getpid()}-{os.urandom(4).hex()}"
    outcome = Outcome(store, axes.size)
    with _watching(outcome, name, watch):
        outcome.broken = _launched(axes, folder, name)
    _wait_for_others(outcome, name, watch)
    return outcome


def _launched(axes: Axes, folder: Path, name: str) -> str | None:
    """Hand the sweep to Hydra; what made its launcher give up, or None."""
    import hydra
    from hydra.errors import MissingConfigException

    told = [text for text in axes.hydra if not text.startswith("hydra.sweep.dir=")]
    values = [f"{_key(group)}={','.join(_value(text) for text in group)}" for group in axes.swept.values()]
    arguments = [*_of_every_run(axes), *values, *told, f"hydra.sweep.dir='{folder}'", "hydra.sweep.subdir=.",
                 "hydra.output_subdir=null", f"hydra.job.name={name}", "hydra/job_logging=none"]  # fmt: skip
    with _arguments(["--multirun", *arguments]):
        try:
            hydra.main(version_base=VERSION_BASE, config_path=str(config_dir()), config_name="run")(job)()
        except (KeyboardInterrupt, TokcompError):
            raise
        except MissingConfigException as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip() and "path=" not in line]
            raise ConfigurationError(" ".join(lines).removesuffix("Config search path:").strip()) from None
        except Exception as error:  # a launcher's own: a worker that died, a cluster that does not answer
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
    late = [(key, value) for key, _, value in parts if "." in key and key.partition(".")[0] in chosen]
    return [f"{key}=choice({value})" if (key, value) in late else f"{key}={value}" for key, _, value in parts]


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


@contextlib.contextmanager
def _watching(outcome: Outcome, name: str, watch: Callable[[Outcome], None]) -> Iterator[None]:
    """Follow the journal from a thread: jobs may run in any process."""
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(_TICK):
            _read(outcome, name)
            watch(outcome)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _read(outcome, name)
        watch(outcome)


def _read(outcome: Outcome, name: str) -> None:
    lines = outcome.store.journal(name)
    outcome.found = [line["key"] for line in lines if line["outcome"] == "found"]
    outcome.done = [line["key"] for line in lines if line["outcome"] == "done"]
    outcome.keys = tuple(dict.fromkeys(line["key"] for line in lines if line["outcome"] in ("found", "done")))
    failed = (line for line in lines if line["outcome"] == "failed")
    outcome.failed = {line["key"] or " ".join(line["overrides"]): line["error"] for line in failed}
    outcome.notes = [line["text"] for line in lines if line["outcome"] == "note"]


def _wait_for_others(outcome: Outcome, name: str, watch: Callable[[Outcome], None]) -> None:
    """Runs that another sweep was making when their turn came: wait for each, or make it where the other one died."""
    for line in outcome.store.journal(name):
        if line["outcome"] == "busy":
            config = RunConfig.resolve(compose(line["overrides"]))
            execute(outcome.store, config, sweep=name, overrides=line["overrides"], wait=True)
            _read(outcome, name)
            watch(outcome)
