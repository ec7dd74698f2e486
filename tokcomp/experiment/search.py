"""The Pareto front of accuracy against cost, searched for over strategies and their settings (Optuna, resumable)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from tokcomp.errors import ConfigurationError, TokcompError, suggest
from tokcomp.experiment.axes import Axes, parsed_overrides, plain, refuse_wrong
from tokcomp.experiment.compose import compose
from tokcomp.experiment.config import RunConfig
from tokcomp.experiment.store import Store, key_of
from tokcomp.experiment.worker import execute
from tokcomp.plugins import is_path
from tokcomp.registry import REGISTRIES

if TYPE_CHECKING:
    from optuna import Study, Trial

__all__ = ["COSTS", "Searched", "Space", "read_space", "search"]

COSTS = ("flops", "kv_bytes", "equivalent_tokens")


@dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes:
        fixed: overrides of every trial.
        choices: by stage the strategies that a trial chooses from.
        settings: by stage, strategy and field how its value is drawn; drawn only where that strategy is chosen.
    """

    fixed: tuple[str, ...]
    choices: dict[str, tuple[str, ...]]
    settings: dict[tuple[str, str, str], Callable[[Trial, str], Any]] = field(default_factory=dict)

    def overrides(self, trial: Trial) -> list[str]:
        """The command line of a trial."""
        line = list(self.fixed)
        for stage, names in self.choices.items():
            name = trial.suggest_categorical(stage, names)
            line.append(f"{stage}={name}")
            for (its_stage, strategy, setting), draw in self.settings.items():
                if (its_stage, strategy) == (stage, name):
                    line.append(f"{stage}.{setting}={draw(trial, f'{stage}.{name}.{setting}')}")
        return line


@dataclass
class Searched:
    """What a search has found.

    Attributes:
        store: where the records are. ``trials``: how many have ended, earlier ones included.
        failed: what was wrong with trials that could not be run, by command line.
        keys: of the runs of all trials that ended well.
    """

    store: Store
    trials: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)


def read_space(overrides: Sequence[str]) -> Space:
    """What a command line spans: ``vision=tome,fastervlm`` chooses, ``vision.fastervlm.keep_ratio=interval(0.05,0.8)`` and
    ``vision.tome.r=range(4,21)`` draw settings of the strategy that they name (``vision.MyIdea.keep_ratio=...`` for
    ``vision=my_pkg.my_idea:MyIdea``).

    Raises:
        ConfigurationError: an override that cannot be read, an unknown strategy or setting, or nothing to choose.
    """
    fixed: list[str] = []
    choices: dict[str, tuple[str, ...]] = {}
    settings: dict[tuple[str, str, str], Callable[[Trial, str], Any]] = {}
    drawn: list[tuple[list[str], Override]] = []
    for text, override in parsed_overrides(overrides):
        parts = override.key_or_group.split(".")
        if len(parts) == 3 and parts[0] in REGISTRIES:
            drawn.append((parts, override))
        elif override.is_sweep_override() and parts[0] in REGISTRIES and len(parts) == 1:
            choices[parts[0]] = tuple(
                plain(value).partition("=")[2] or plain(value) for value in override.sweep_string_iterator()
            )
        elif override.is_sweep_override():
            raise ConfigurationError(
                f"'{text}' cannot be searched: choose strategies (vision=tome,fastervlm) and draw settings of one of them "
                "(vision.tome.r=range(4,21), vision.fastervlm.keep_ratio=interval(0.05,0.8))"
            )
        else:
            fixed.append(text)
    for (stage, strategy, setting), override in drawn:
        settings[_setting(stage, _chosen(strategy, choices.get(stage, ())), setting)] = _draw(override)
    for stage, strategy, setting in settings:
        if strategy not in choices.setdefault(stage, (strategy,)):
            raise ConfigurationError(
                f"{stage}.{strategy}.{setting} is never drawn: {stage} is chosen from {', '.join(choices[stage])}"
            )
    if not choices:
        raise ConfigurationError(
            "nothing to search: give strategies to choose from, such as vision=none,tome,fastervlm"
        )
    return Space(tuple(fixed), choices, settings)


def _chosen(strategy: str, choices: Sequence[str]) -> str:
    """The choice that a setting's key means: a dotted path is named by its class alone, since a key has no colon."""
    return next(
        (name for name in choices if is_path(name) and name.replace(":", ".").endswith(f".{strategy}")), strategy
    )


def _setting(stage: str, strategy: str, name: str) -> tuple[str, str, str]:
    known = tuple(REGISTRIES[stage][strategy].model_fields)
    if name not in known:
        raise ConfigurationError(
            f"'{name}' is not a setting of {stage} '{strategy}'{suggest(name, known)} it takes: {', '.join(known)}"
        )
    return stage, strategy, name


def _draw(override: Override) -> Callable[[Trial, str], Any]:
    """How a value is drawn: uniformly between two numbers, a whole number of a range, or one of several."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        low, high = float(value.start or 0), float(value.end or 0)
        return lambda trial, name: trial.suggest_float(name, low, high)
    if isinstance(value, RangeSweep):
        numbers = [int(number) for number in value.range()]
        return lambda trial, name: trial.suggest_categorical(name, numbers) if len(numbers) < 3 else trial.suggest_int(
            name, numbers[0], numbers[-1], step=numbers[1] - numbers[0])  # fmt: skip
    options = list(override.sweep_string_iterator()) if override.is_sweep_override() else [str(value)]
    return lambda trial, name: trial.suggest_categorical(name, options)


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
        ConfigurationError: optuna is missing, a wrong space or cost, a folder that holds another search.
    """
    space = read_space(overrides)
    if cost not in COSTS:
        raise ConfigurationError(f"cost={cost} is not known: give one of {', '.join(COSTS)}")
    refuse_wrong(Axes(space.fixed, {stage: tuple(f"{stage}={name}" for name in names)
                                    for stage, names in space.choices.items()}, ()))  # fmt: skip
    found = Searched(Store(folder))
    study = _study(folder, f"{cost} {' '.join(sorted(overrides))}", seed)
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
    return found


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
            sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=12),
        )  # fmt: skip
    before = study.user_attrs.get("meant")
    if before not in (None, meant):
        raise ConfigurationError(f"{folder} holds another search ({before}): give another --out")
    study.set_user_attr("meant", meant)
    return study


def _put_back(study: Study) -> None:
    """Trials that a killed search left running are marked as failed and drawn again with the same values."""
    for trial in study.get_trials(deepcopy=False):
        if trial.state == _states().RUNNING:
            study.tell(trial.number, state=_states().FAIL)
            if trial.params:
                study.enqueue_trial(trial.params)


def _ended(study: Study) -> int:
    return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
