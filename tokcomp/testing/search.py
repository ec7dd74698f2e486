"""Looks for the smallest situation in which a test fails."""

from __future__ import annotations

from collections.abc import Callable

from tokcomp.testing.extra import hypothesis
from tokcomp.testing.report import Breach, Unchecked
from tokcomp.testing.situations import Situation, Space

__all__ = ["Found", "Search"]

_SHRINKING = 80
"""Situations that are drawn to find a smaller one than a known one that failed."""


class Found(Exception):
    """A breach, and the smallest situation that shows it."""

    def __init__(self, breach: Breach, situation: Situation) -> None:
        super().__init__(breach.what)
        self.breach, self.situation = breach, situation


class Search:
    """Tries a test on the known situations of a space, then on drawn ones, and shrinks what fails.

    Args:
        examples: how many situations are drawn.
    """

    def __init__(self, examples: int = 25) -> None:
        self.examples = examples

    def __call__(self, space: Space, test: Callable[[Situation], None]) -> None:
        """Raises:
        Found: the test failed; the smallest situation that was seen.
        Unchecked: it could be decided in no situation at all.
        """
        causes: list[str] = []
        decided = 0
        for situation in space.known():
            try:
                test(situation)
                decided += 1
            except Unchecked as cause:
                causes.append(str(cause))
            except Breach as breach:
                smaller = self._drawn(space, test, max(self.examples, _SHRINKING), [])
                first = Found(breach, situation)
                raise (smaller if smaller is not None and smaller.situation.size < situation.size else first) from None
        found = self._drawn(space, test, self.examples, causes)
        if found is not None:
            raise found
        if not decided and causes:
            raise Unchecked(causes[0])

    @staticmethod
    def _drawn(space: Space, test: Callable[[Situation], None], examples: int, causes: list[str]) -> Found | None:
        """The smallest failing situation that hypothesis finds."""
        if not examples:
            return None
        package = hypothesis()
        found: list[Found] = []

        @package.settings(
            max_examples=examples, derandomize=True, database=None, deadline=None, report_multiple_bugs=False,
            suppress_health_check=list(package.HealthCheck), print_blob=False,
        )  # fmt: skip
        @package.given(space.drawn())
        def search(situation: Situation) -> None:
            try:
                test(situation)
            except Unchecked as cause:
                causes.append(str(cause))
            except Breach as breach:
                found.append(Found(breach, situation))
                raise

        try:
            search()
        except Breach:
            pass
        except package.errors.Unsatisfiable:
            return None
        return min(found, key=lambda each: each.situation.size, default=None)
