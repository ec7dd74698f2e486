"""A sweep: every combination of its axes, run by a Hydra launcher into one store that survives anything."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokcomp.errors import ConfigurationError
from tokcomp.experiment.axes import Axes, read_axes, refuse_wrong
from tokcomp.experiment.compose import compose
from tokcomp.experiment.config import RunConfig
from tokcomp.experiment.environment import refuse_unusable
from tokcomp.experiment.launch import launch, launcher_settings
from tokcomp.experiment.store import Store, key_of
from tokcomp.experiment.worker import execute

__all__ = ["Outcome", "default_folder", "sweep"]

_TICK = 0.5  # seconds between looks at the journal


@dataclass
class Outcome:
    """What became of a sweep's jobs.

    Attributes:
        store: where the records are. ``size``: combinations.
        found, done: keys of the records that were there, and that were made.
        keys: both, in the order of the jobs; combinations that mean the same run share one.
        failed: error by key, or by command line where no record could be made. ``failures``: jobs that failed so.
        notes: what else is to be told.
        broken: why the launcher gave up before the end, or None.
    """

    store: Store
    size: int
    found: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    keys: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    failures: int = 0
    notes: list[str] = field(default_factory=list)
    broken: str | None = None

    @property
    def ended(self) -> int:
        """Jobs that came to an end."""
        return len(self.found) + len(self.done) + self.failures


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
        ConfigurationError: a part of the sweep or a launcher that cannot be used (told before any job), or a folder that
            cannot be written.
    """
    axes = read_axes(overrides)
    devices = refuse_wrong(axes)
    launcher = launcher_settings(axes)
    for device in devices if launcher.here else ():
        refuse_unusable(device)
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
        outcome.broken = launch(axes, launcher.settings, folder, name)
    _wait_for_others(outcome, name, watch)
    return outcome


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
    failed = [line for line in lines if line["outcome"] == "failed"]
    outcome.failures = len(failed)
    outcome.failed = {line["key"] or " ".join(line["overrides"]): line["error"] for line in failed}
    outcome.notes = [line["text"] for line in lines if line["outcome"] == "note"]


def _wait_for_others(outcome: Outcome, name: str, watch: Callable[[Outcome], None]) -> None:
    """Runs that another sweep was making when their turn came: wait for each, or make it where the other one died and this
    machine can."""
    for line in outcome.store.journal(name):
        if line["outcome"] == "busy":
            config = RunConfig.resolve(compose(line["overrides"]))
            if key_of(config) == line["key"] and _usable(config.device):
                execute(outcome.store, config, sweep=name, overrides=line["overrides"], wait=True)
            else:  # the job's machine had another device than this one
                with outcome.store.claim(line["key"], wait=True):
                    if outcome.store.good(line["key"]) is not None:
                        outcome.store.note(name, outcome="found", key=line["key"], overrides=line["overrides"])
            _read(outcome, name)
            watch(outcome)


def _usable(device: str) -> bool:
    try:
        refuse_unusable(device)
    except ConfigurationError:
        return False
    return True
