"""Hands records on to experiment trackers: TensorBoard, MLflow, Weights & Biases, or a package's own. Off unless asked for.

    tokcomp sweep vision=none,tome callbacks=[tensorboard]

A callback is a function of a record and its folder; installed packages add some by the entry-point group
``tokcomp.callbacks``. It is told of every run that ends well, after its record is written, so that a tracker that fails
costs no run: its error is a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from tokcomp.errors import ConfigurationError, PluginWarning, suggest
from tokcomp.experiment.result import Result

__all__ = ["Callback", "callback_names", "find_callback", "notify", "scalars"]

Callback = Callable[[Result, Path], None]

_GROUP = "tokcomp.callbacks"


def scalars(result: Result) -> dict[str, float]:
    """The figures of a run that ended well, by a flat name."""
    dense, compressed = result.dense, result.compressed
    assert dense is not None
    assert compressed is not None
    figures = {
        "accuracy": compressed.accuracy.overall,
        "dense_accuracy": dense.accuracy.overall,
        "agreement": compressed.agreement,
        "equivalent_tokens": compressed.tokens.equivalent_tokens,
        "flops_share": compressed.flops["total"] / dense.flops["total"],
        "kv_share": compressed.kv_bytes / dense.kv_bytes,
        **{f"accuracy_by_kind/{kind}": value for kind, value in compressed.accuracy.by_kind.items()},
    }
    if compressed.time is not None:
        figures["prefill_time_share"] = compressed.time.ratio.prefill
        figures["total_time_share"] = compressed.time.ratio.end_to_end
    return figures


def _settings(result: Result) -> dict[str, Any]:
    return {
        **{stage: result.config[stage]["name"] for stage in ("vision", "prefill", "cache", "model", "benchmark")},
        "seed": result.config["seed"],
        "overrides": " ".join(result.overrides),
        "config_hash": result.config_hash,
    }


def tensorboard(result: Result, folder: Path) -> None:
    """Scalars and settings as TensorBoard events in ``tensorboard/`` beside the record."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:
        writer.add_hparams(_settings(result), scalars(result), run_name=".")


def mlflow(result: Result, folder: Path) -> None:
    """One MLflow run per record, in the experiment and at the tracking address that MLflow's own settings name."""
    import mlflow as tracker

    with tracker.start_run(run_name=result.config_hash[:12]):
        tracker.log_params(_settings(result))
        tracker.log_metrics({name.replace("/", "."): value for name, value in scalars(result).items()})
        tracker.log_artifact(str(folder / "result.json"))


def wandb(result: Result, folder: Path) -> None:
    """One Weights & Biases run per record, in the project that its own settings name."""
    import wandb as tracker

    run = tracker.init(name=result.config_hash[:12], config=_settings(result), reinit="finish_previous")
    run.log(scalars(result))
    run.finish()


_BUILT_IN: dict[str, Callback] = {"tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb}


def callback_names() -> tuple[str, ...]:
    """Names of all callbacks, those of installed packages included."""
    return tuple(sorted({*_BUILT_IN, *(point.name for point in entry_points(group=_GROUP))}))


def find_callback(name: str) -> Callback:
    """The callback called ``name``.

    Raises:
        ConfigurationError: there is none, or its package cannot be imported.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    for point in entry_points(group=_GROUP, name=name):
        try:
            found: Callback = point.load()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ConfigurationError(f"callback '{name}' ({point.value}) cannot be imported: {reason}") from error
        return found
    known = callback_names()
    raise ConfigurationError(f"unknown callback '{name}'{suggest(name, known)} known: {', '.join(known)}")


def notify(names: tuple[str, ...], result: Result, folder: Path) -> None:
    """Tell every callback of a record; one that fails is named in a warning and the others go on."""
    for name in names:
        try:
            find_callback(name)(result, folder)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(f"callback '{name}' failed, the record is kept: {reason}", PluginWarning, stacklevel=2)
