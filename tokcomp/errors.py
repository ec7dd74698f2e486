"""What tokcomp raises. Each message says what was given, what was expected and what to do."""

from __future__ import annotations

import difflib

__all__ = [
    "CompatibilityError",
    "ConfigurationError",
    "DiscoveryWarning",
    "FeatureError",
    "PluginError",
    "PluginWarning",
    "StateError",
    "TokcompError",
    "UnknownStrategyError",
    "UnsupportedError",
    "suggest",
]


class TokcompError(Exception):
    """Base class of tokcomp's own errors; the command line prints the message and exits with status 2."""


class ConfigurationError(TokcompError, ValueError):
    """A setting that does not exist, is out of range or contradicts another one."""


class UnknownStrategyError(ConfigurationError, KeyError):
    """A strategy name that no registry knows."""

    def __init__(self, stage: str, name: str, known: tuple[str, ...]) -> None:
        self.stage, self.name, self.known = stage, name, known
        self.message = f"unknown {stage} strategy '{name}'{suggest(name, known)} known: none, {', '.join(known)}"
        super().__init__(self.message)

    def __str__(self) -> str:  # KeyError would print the repr
        return self.message


class CompatibilityError(TokcompError, ValueError):
    """A strategy needs what the model does not have."""


class UnsupportedError(TokcompError, RuntimeError):
    """A model, cache or way of generating that tokcomp does not support (yet)."""


class FeatureError(TokcompError, ValueError):
    """Image features that cannot be used: NaN or Inf, or a count that disagrees with the prompt."""


class PluginError(TokcompError, TypeError):
    """A class that cannot be registered as a strategy."""


class StateError(TokcompError, AttributeError):
    """A strategy tried to keep something on itself."""

    def __init__(self, strategy: str, name: str) -> None:
        super().__init__(
            f"{strategy} sets self.{name}, but strategies keep no state, since one serves many requests at once: a setting is "
            "a declared field, what lasts only for one call a local variable"
        )


class DiscoveryWarning(UserWarning):
    """The parts of a model that no adapter knows were found by their names."""


class PluginWarning(UserWarning):
    """A plug-in that was left out."""


def suggest(name: str, known: tuple[str, ...]) -> str:
    """``"; did you mean 'x'?"`` for the nearest known name, else ``";"``."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ";"
