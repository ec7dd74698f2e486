"""The optional package behind the kit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from tokcomp.errors import ConfigurationError

__all__ = ["hypothesis", "hypothesis_home", "hypothesis_strategies"]


def hypothesis() -> ModuleType:
    """The package.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        import hypothesis
    except ImportError as error:
        raise ConfigurationError(
            "the contract kit needs hypothesis, which is not installed: pip install 'tokcomp[testing]'"
        ) from error
    return hypothesis


def hypothesis_strategies() -> ModuleType:
    """Its generators of values."""
    hypothesis()
    from hypothesis import strategies

    return strategies


@contextmanager
def hypothesis_home(folder: str) -> Iterator[None]:
    """The package's own notes go into ``folder``, not into the working folder."""
    hypothesis()
    from hypothesis import configuration

    configuration.set_hypothesis_home_dir(folder)
    try:
        yield
    finally:
        configuration.set_hypothesis_home_dir(None)
