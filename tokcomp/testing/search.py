"""Looks for the smallest situation in which a test fails."""

from __future__ import annotations

from collections.abc import Callable

from tokcomp.testing.extra import hypothesis
from tokcomp.testing.report import Breach, Unchecked
from tokcomp.testing.situations import Situation, Space

__all__ = ["Found", "Search"]

_SHRINKING = 120
"""Situations that are tried to find a smaller one than one that failed."""


class Found(Exception):
    """A breach, and the smallest situation that shows it."""

    def __init__(self, breach: Breach, situation: Situation) -> None:
        super().__init__(breach.what)
        self.breach, self.situation = breach, situation


class _Enough(BaseException):
    """Ends a search from inside: no Exception, which would count as another failure."""


class Search:
    """Tries a test on the known situations of a space, then on drawn ones, and shrinks what fails.

    Args:
        examples: how many situations are drawn; 0: the known ones alone, and no smaller one is looked for.
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
            before = len(causes)
            breach = _breach(test, situation, causes)
            if breach is not None:
                smaller = self._drawn(space, test, max(self.examples, _SHRINKING), []) if self.examples else None
                first = Found(breach, situation)
                raise smaller if smaller is not None and smaller.situation.size < situation.size else first
            decided += len(causes) == before
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
        outcomes: dict[Situation, Breach | None] = {}  # each is tried once, so that a dice cannot mislead the shrinking
        failed = 0

        @package.settings(
            max_examples=examples, derandomize=True, database=None, deadline=None, report_multiple_bugs=False,
            suppress_health_check=list(package.HealthCheck), print_blob=False,
        )  # fmt: skip
        @package.given(space.drawn())
        def search(situation: Situation) -> None:
            nonlocal failed
            if situation not in outcomes:
                if failed and len(outcomes) - failed > _SHRINKING:
                    raise _Enough
                outcomes[situation] = _breach(test, situation, causes)
                failed = failed or (len(outcomes) if outcomes[situation] is not None else 0)
            breach = outcomes[situation]
            if breach is not None:
                raise breach

        try:
            search()
        except (Breach, _Enough):
            pass
        except package.errors.Unsatisfiable:
            return None
        found = [Found(breach, situation) for situation, breach in outcomes.items() if breach is not None]
        return min(found, key=lambda each: each.situation.size, default=None)


def _breach(test: Callable[[Situation], None], situation: Situation, causes: list[str]) -> Breach | None:
    try:
        test(situation)
    except Unchecked as cause:
        causes.append(str(cause))
    except Breach as breach:
        return breach
    return None
