"""One job of a sweep, in whatever process a launcher runs it: found, left to another process, or made. It never raises
what one run did wrong; what would stop every run (a store that cannot be written) it does raise."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokcomp.benchmarks.base import Sample
from tokcomp.errors import ConfigurationError, TokcompError
from tokcomp.experiment.axes import plain
from tokcomp.experiment.config import RunConfig
from tokcomp.experiment.load import LoadedModel, load_model
from tokcomp.experiment.result import UnwritableError
from tokcomp.experiment.run import run_recorded
from tokcomp.experiment.store import Store, key_of

__all__ = ["execute", "job", "model_of", "questions_of"]

_held: dict[str, LoadedModel] = {}
"""The model that this process holds, by configuration: one at a time."""
_asked: dict[str, Sequence[Sample]] = {}
"""The questions that it holds, likewise."""


def model_of(config: RunConfig) -> LoadedModel:
    """The model that a run asks for; the last one that was asked for is kept."""
    name = f"{config.model.model_dump_json()} {config.device} {config.dtype}"
    if name not in _held:
        _held.clear()
        gc.collect()
        _held[name] = load_model(config.model, device=config.device, dtype=config.torch_dtype)
    return _held[name]


def questions_of(config: RunConfig) -> Sequence[Sample]:
    """The questions of a run; the last ones that were asked for are kept, too."""
    name = f"{type(config.benchmark).__module__} {config.benchmark.spec()}"
    if name not in _asked:
        _asked.clear()
        _asked[name] = config.benchmark.load()
    return _asked[name]


def execute(store: Store, config: RunConfig, *, sweep: str, overrides: list[str], wait: bool = False) -> str:
    """Make one run of a store and note what became of it in the sweep's journal.

    Returns:
        ``found`` (a good record was there), ``done``, ``failed`` (its record says why), or ``busy``: another process
        makes it; with ``wait`` that one is waited for.

    Raises:
        ConfigurationError: the store cannot be read or written.
    """
    key = key_of(config)

    def noted(outcome: str, **more: Any) -> str:
        store.note(sweep, outcome=outcome, key=key, overrides=overrides, **more)
        return outcome

    def say(line: str) -> None:
        store.note(sweep, outcome="note", text=line)

    if store.good(key, say) is not None:
        return noted("found")
    with store.claim(key, wait=wait) as ours:
        if not ours:
            return noted("busy")
        if store.good(key) is not None:  # made while we waited
            return noted("found")
        try:
            result = run_recorded(
                config,
                store.folder(key),
                load=model_of,
                ask=questions_of,
                reference=lambda make: store.reference(config, make),
                overrides=overrides,
            )
        except UnwritableError:
            raise
        except Exception as error:
            told = str(error) if isinstance(error, TokcompError) else f"{type(error).__name__}: {error}"
            return noted("failed", error=" ".join(told.split()))
        return noted("done", seconds=result.seconds)


def job(settings: Any) -> str:
    """What Hydra calls for every combination, in this process or in another one."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf
    from transformers.utils import logging

    logging.disable_progress_bar()
    hydra = HydraConfig.get()
    store = Store(Path(hydra.sweep.dir).absolute())
    overrides = [plain(text) for text in hydra.overrides.task]
    try:
        composed = OmegaConf.to_container(settings, resolve=True)
        assert isinstance(composed, Mapping)
        config = RunConfig.resolve({str(name): value for name, value in composed.items()})
    except ConfigurationError as error:
        store.note(hydra.job.name, outcome="failed", key=None, overrides=overrides, error=str(error))
        return "failed"
    return execute(store, config, sweep=hydra.job.name, overrides=overrides)
