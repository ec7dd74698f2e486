"""The untrained checkpoint."""

from tests.untrained import untrained

__all__ = ["untrained"]
