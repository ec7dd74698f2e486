"""What a search draws from: strategies, and settings of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from tokcomp.errors import ConfigurationError, suggest
from tokcomp.experiment.axes import parsed_overrides, plain
from tokcomp.plugins import is_path
from tokcomp.registry import REGISTRIES

if TYPE_CHECKING:
    from optuna import Trial

__all__ = ["Space", "read_space"]


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
        elif parts[0] in REGISTRIES and len(parts) == 1 and text.startswith(f"{parts[0]}="):
            choices[parts[0]] = (text.partition("=")[2],)
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
    if not settings and all(len(names) == 1 for names in choices.values()):
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
        if low > high:
            raise ConfigurationError(f"'{override.input_line}' is empty: give the lower end first")
        return lambda trial, name: trial.suggest_float(name, low, high)
    if isinstance(value, RangeSweep):
        numbers = sorted(_rounded(number) for number in value.range())
        if not numbers:
            raise ConfigurationError(f"'{override.input_line}' is empty: give range(first,end), the end not included")
        return _of_numbers(numbers)
    options = list(override.sweep_string_iterator()) if override.is_sweep_override() else [str(value)]
    return lambda trial, name: trial.suggest_categorical(name, options)


def _of_numbers(numbers: Sequence[float]) -> Callable[[Trial, str], Any]:
    """One of several numbers at equal distances, ascending."""
    if len(numbers) < 3:
        return lambda trial, name: trial.suggest_categorical(name, numbers)
    first, last, step = numbers[0], numbers[-1], numbers[1] - numbers[0]
    if all(isinstance(number, int) for number in numbers):
        return lambda trial, name: trial.suggest_int(name, int(first), int(last), step=int(step))
    places = len(numbers) - 1
    # Drawn by place: a sum of steps would give 0.30000000000000004.
    return lambda trial, name: numbers[trial.suggest_int(f"{name} (place)", 0, places)]


def _rounded(number: float) -> float:
    return number if isinstance(number, int) else float(f"{number:.12g}")
