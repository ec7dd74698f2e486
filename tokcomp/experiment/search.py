"""The Pareto front of accuracy against cost, searched for over strategies and their settings (Optuna, resumable)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokcomp.errors import ConfigurationError, TokcompError
from tokcomp.experiment.axes import Axes, refuse_wrong
from tokcomp.experiment.compose import compose
from tokcomp.experiment.config import RunConfig
from tokcomp.experiment.space import Space, read_space
from tokcomp.experiment.store import Store, key_of
from tokcomp.experiment.worker import execute

if TYPE_CHECKING:
    from optuna import Study

__all__ = ["COSTS", "Searched", "search"]

COSTS = ("flops", "kv_bytes", "equivalent_tokens")


@dataclass
class Searched:
    """What a search has found.

    Attributes:
        store: where the records are. ``trials``: how many have ended, earlier ones included.
        failed: what was wrong with trials of this call that could not be run, by command line.
        keys: of the runs of this call's trials that ended well.
    """

    store: Store
    trials: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)


def search(overrides: Sequence[str], folder: Path, *, trials: int, cost: str = "flops", seed: int = 0,
           watch: Callable[[Searched], None] = lambda found: None) -> Searched:  # fmt: skip
    """Run trials until ``trials`` have ended in this folder, earlier ones counted.

    Args:
        overrides: what a user writes after ``tokcomp search``.
        folder: holds the store of the runs and the study (``search.db``).
        trials: how many in all.
        cost: what is to be low while accuracy is high: one of :data:`COSTS`, as a share of the dense model's.
        seed: of the sampler.
        watch: told when the search begins, and after every trial.

    Raises:
        ConfigurationError: optuna is missing, a wrong space or cost, a folder that holds another search or in which another
            process searches.
    """
    space = read_space(overrides)
    if cost not in COSTS:
        raise ConfigurationError(f"cost={cost} is not known: give one of {', '.join(COSTS)}")
    refuse_wrong(Axes(space.fixed, {stage: tuple(f"{stage}={name}" for name in names)
                                    for stage, names in space.choices.items()}, ()))  # fmt: skip
    found = Searched(Store(folder))
    with found.store.claim("search") as ours:
        if not ours:
            raise ConfigurationError(f"another process searches in {folder}: wait for it, or give another --out")
        _tried(space, _study(folder, f"{cost} {' '.join(sorted(overrides))}", seed), found, trials, cost, watch)
    return found


def _tried(space: Space, study: Study, found: Searched, trials: int, cost: str,
           watch: Callable[[Searched], None]) -> None:  # fmt: skip
    _put_back(study)
    name = f"search-{os.getpid()}"
    found.trials = _ended(study)
    watch(found)
    for ended in range(_ended(study), trials):
        trial = study.ask()
        line = space.overrides(trial)
        try:
            config = RunConfig.resolve(compose(line))
            outcome = execute(found.store, config, sweep=name, overrides=line, wait=True)
            told = found.store.journal(name)[-1].get("error", "failed")
        except TokcompError as error:
            outcome, told, config = "failed", str(error), None
        if config is None or outcome == "failed":
            found.failed[" ".join(line)] = told
            study.tell(trial, state=_states().FAIL)
        else:
            study.tell(trial, _values(found.store, key_of(config), cost))
            found.keys.append(key_of(config))
        found.trials = ended + 1
        watch(found)


def _values(store: Store, key: str, cost: str) -> tuple[float, float]:
    result = store.good(key)
    assert result is not None
    assert result.dense is not None
    assert result.compressed is not None
    dense, compressed = result.dense, result.compressed
    costs = {
        "flops": compressed.flops["total"] / dense.flops["total"],
        "kv_bytes": compressed.kv_bytes / dense.kv_bytes,
        "equivalent_tokens": compressed.tokens.equivalent_tokens / dense.tokens.equivalent_tokens,
    }
    return compressed.accuracy.overall, costs[cost]


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ConfigurationError("the search needs optuna: pip install 'tokcomp[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _states() -> Any:
    return _optuna().trial.TrialState


def _study(folder: Path, meant: str, seed: int) -> Study:
    optuna = _optuna()
    storage = f"sqlite:///{folder.absolute() / 'search.db'}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            study_name="tokcomp", storage=storage, load_if_exists=True, directions=["maximize", "minimize"],
        )  # fmt: skip
        # A sampler begins anew with every call: with the same seed, it would draw the first trials again.
        study.sampler = optuna.samplers.TPESampler(
            seed=seed + 7919 * len(study.get_trials(deepcopy=False)), multivariate=True, group=True, n_startup_trials=12
        )
    before = study.user_attrs.get("meant")
    if before not in (None, meant):
        raise ConfigurationError(f"{folder} holds another search ({before}): give another --out")
    study.set_user_attr("meant", meant)
    return study


def _put_back(study: Study) -> None:
    """Trials that a killed search left running are marked as failed and drawn again with the same values; they do not count."""
    for trial in study.get_trials(deepcopy=False):
        if trial.state == _states().RUNNING:
            study.set_user_attr("put back", [*study.user_attrs.get("put back", ()), trial.number])
            study.tell(trial.number, state=_states().FAIL)
            if trial.params:
                study.enqueue_trial(trial.params)


def _ended(study: Study) -> int:
    left_out = set(study.user_attrs.get("put back", ()))
    return sum(trial.state.is_finished() and trial.number not in left_out for trial in study.get_trials(deepcopy=False))
