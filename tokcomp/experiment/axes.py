"""The axes of a sweep: what a command line spans, and whether every part of it can be run, told before any job runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from tokcomp.deprecation import current_overrides
from tokcomp.errors import ConfigurationError
from tokcomp.experiment.compose import compose, own_hydra, register_plugins
from tokcomp.experiment.config import RunConfig

__all__ = ["Axes", "parsed_overrides", "plain", "read_axes", "refuse_wrong"]

_EVERYWHERE = ("preset", "experiment")
"""Groups whose options choose options of other groups, so that they are checked together with everything."""


@dataclass(frozen=True)
class Axes:
    """What a sweep spans.

    Attributes:
        fixed: overrides that are the same in every run.
        swept: by setting or group: its overrides, one for each value.
        hydra: what Hydra itself is told (``hydra.*``, ``hydra/*``).
    """

    fixed: tuple[str, ...]
    swept: dict[str, tuple[str, ...]]
    hydra: tuple[str, ...]

    @property
    def size(self) -> int:
        """Combinations."""
        return math.prod(len(values) for values in self.swept.values())

    def combinations(self) -> Iterator[tuple[str, ...]]:
        """The overrides of every run, in Hydra's order."""
        for values in itertools.product(*self.swept.values()):
            yield (*self.fixed, *values)


def read_axes(overrides: Sequence[str]) -> Axes:
    """What a command line spans: ``a=1,2`` and ``a=glob(*)``, ``a=range(1,5)`` are axes.

    Raises:
        ConfigurationError: an override that cannot be read, an axis without end, or one that is given twice.
    """
    fixed: list[str] = []
    swept: dict[str, tuple[str, ...]] = {}
    told: list[str] = []
    given: set[str] = set()
    for text, override in parsed_overrides(overrides):
        key = override.key_or_group
        if key.partition(".")[0].partition("/")[0] == "hydra":
            told.append(text)
            continue
        if key in swept or (override.is_sweep_override() and key in given):
            raise ConfigurationError(f"'{text}': {key} is given twice: give all its values at once, as {key}=1,2,3")
        given.add(key)
        if not override.is_sweep_override():
            fixed.append(text)
        else:
            if not override.is_discrete_sweep():
                raise ConfigurationError(f"'{text}' has no end: list the values, as {key}=1,2,3 or {key}=range(1,4)")
            values = [plain(value) for value in override.sweep_string_iterator()]
            swept[key] = tuple(f"{override.get_key_element()}={value}" for value in values)
            if not swept[key]:
                raise ConfigurationError(f"'{text}' matches nothing: `tokcomp list {key}` names the options")
    return Axes(tuple(fixed), swept, tuple(told))


def plain(value: str) -> str:
    """A value of a sweep as a user writes it: Hydra escapes the colon of a dotted path, which needs none."""
    return value.replace("\\:", ":")


def parsed_overrides(overrides: Sequence[str]) -> list[tuple[str, Override]]:
    """Every override as it was written and as Hydra reads it.

    Raises:
        ConfigurationError: one that cannot be read.
    """
    overrides = current_overrides(list(overrides))
    register_plugins(overrides)
    with own_hydra():
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        return [(text, _parsed(parser, text)) for text in overrides]


def _parsed(parser: OverridesParser, text: str) -> Override:
    try:
        return parser.parse_overrides([text])[0]  # the plural one ties it to the options that glob() looks at
    except HydraException:
        raise ConfigurationError(
            f"'{text}' cannot be read: give name=value or name=value,value, such as vision=none,tome; quote values with "
            "special characters twice: \"model.path='/data/a=b'\""
        ) from None


def refuse_wrong(axes: Axes) -> set[str]:
    """Compose every part of the sweep once. Settings of one stage are tried in all their combinations, stages one after
    the other, so that the work grows with the sum of the axes and not with their product.

    Returns:
        The devices that the runs ask for.

    Raises:
        ConfigurationError: an unknown option, a setting that does not exist or is out of range.
    """
    devices: set[str] = set()
    sections: dict[str, list[str]] = {}
    for key in axes.swept:
        sections.setdefault(key.partition(".")[0].partition("/")[0], []).append(key)
    everywhere = [key for name in _EVERYWHERE for key in sections.pop(name, [])]
    first = {key: values[0] for key, values in axes.swept.items()}
    for keys in [list(group) for group in sections.values()] or [[]]:
        varied = [*everywhere, *keys]
        for values in itertools.product(*(axes.swept[key] for key in varied)):
            chosen = {**first, **dict(zip(varied, values, strict=True))}
            devices.add(RunConfig.resolve(compose([*axes.fixed, *chosen.values()])).device)
    return devices
