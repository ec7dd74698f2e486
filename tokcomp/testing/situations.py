"""Situations: the small descriptions from which views are made, and the spaces that hypothesis searches and shrinks in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from tokcomp.testing.extra import hypothesis_strategies

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

__all__ = ["PLAIN", "Situation", "Space"]

_NOUN = {"vision": "token", "prefill": "vision token", "cache": "entry"}
_HOLDER = {"vision": "image", "prefill": "prompt", "cache": "cache"}


@dataclass(frozen=True)
class Situation:
    """What a strategy is shown.

    Attributes:
        stage: of the strategy.
        counts: vision tokens (in the cache stage: entries) of each sample.
        grid: vision: rows and columns of the patch grid that the tokens come from.
        text: prefill: text tokens after each sample's image.
        protected: share of the tokens that are marked as key tokens.
        merged: whether tokens were merged before.
        has_cls: vision: whether the tower has a CLS token.
        half: bfloat16 instead of float32.
        seed: of the random numbers.
    """

    stage: str
    counts: tuple[int, ...]
    grid: tuple[int, int] = (6, 6)
    text: tuple[int, ...] = ()
    protected: float = 0.0
    merged: bool = False
    has_cls: bool = True
    half: bool = False
    seed: int = 0

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.half else torch.float32

    @property
    def size(self) -> tuple[int, ...]:
        """By which of two situations the smaller one is told."""
        return len(self.counts), sum(self.counts), self.grid[0] * self.grid[1], sum(self.text), self.seed

    def __str__(self) -> str:
        noun, holder = _NOUN[self.stage], _HOLDER[self.stage]
        plural = "entries" if noun == "entry" else f"{noun}s"
        if len(self.counts) == 1:
            told = f"one {holder} with {self.counts[0]} {noun if self.counts[0] == 1 else plural}"
        else:
            told = f"a batch of {len(self.counts)} {holder}s with {_listed(self.counts)} {plural}"
        told += f" of a {self.grid[0]} x {self.grid[1]} grid" if self.stage == "vision" else ""
        told += f" and {_listed(self.text)} text tokens after the image" if self.text else ""
        told += f", {self.protected:.0%} of them key tokens" if self.protected else ""
        told += ", some merged before" if self.merged else ""
        told += ", a tower without CLS token" if not self.has_cls else ""
        told += ", bfloat16" if self.half else ""
        return told + f" (seed {self.seed})"


def _listed(numbers: tuple[int, ...]) -> str:
    if len(set(numbers)) == 1:
        return str(numbers[0])
    return ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"


PLAIN = {
    "vision": Situation("vision", (36,)),
    "prefill": Situation("prefill", (30,), text=(4,)),
    "cache": Situation("cache", (40,)),
}
"""One sample of ordinary size, where every strategy should work."""

_KNOWN: dict[str, list[tuple[tuple[int, ...], tuple[int, int]]]] = {
    "vision": [((2,), (1, 2)), ((36,), (6, 6)), ((1, 1), (1, 1)), ((35,), (5, 7)), ((7,), (1, 7)), ((36,) * 3, (6, 6)),
               ((2, 1, 4), (2, 2)), ((36, 21, 9), (6, 6)), ((35, 35, 30), (5, 7)), ((144, 100, 3), (12, 12))],
    "prefill": [((counts), (6, 6)) for counts in ((1,), (7,), (30,), (1,) * 3, (9,) * 3, (12, 1, 5), (31, 24, 30))],
    "cache": [((counts), (6, 6)) for counts in ((1,), (7,), (40,), (1,) * 3, (9,) * 3, (12, 1, 5), (41, 36, 50))],
}  # fmt: skip
"""Sizes that are always tried, small ones first: at a random choice the awkward ones may be missed."""


@dataclass(frozen=True)
class Space:
    """Situations of one stage that have something in common.

    Attributes:
        batch: fewest and most samples. ``tokens``: fewest and most tokens of a sample.
        ragged: True: samples differ in length; False: they do not; None: either.
        square: vision: True: even square grids; False: all others; None: any grid.
        protected: shares of key tokens to draw from. ``merged``: whether tokens may have been merged before.
        half: of which precision. ``without_cls``: whether a tower without CLS token may be drawn.
    """

    stage: str
    batch: tuple[int, int] = (1, 3)
    tokens: tuple[int, int] = (1, 200)
    ragged: bool | None = None
    square: bool | None = None
    protected: tuple[float, ...] = (0.0,)
    merged: bool = False
    half: bool = False
    without_cls: bool = False

    def admits(self, situation: Situation) -> bool:
        """Whether a situation's sizes lie in this space."""
        counts, (rows, columns) = situation.counts, situation.grid
        even = rows == columns and rows % 2 == 0
        return (
            self.batch[0] <= len(counts) <= self.batch[1]
            and all(self.tokens[0] <= count <= self.tokens[1] for count in counts)
            and (self.ragged is None or self.ragged == (len(set(counts)) > 1))
            and (self.stage != "vision" or self.square is None or self.square == even)
        )

    def known(self) -> Iterator[Situation]:
        """The situations that are always tried."""
        for number, (counts, grid) in enumerate(_KNOWN[self.stage]):
            text = tuple(3 + row for row in range(len(counts))) if self.stage == "prefill" else ()
            plain = Situation(self.stage, counts, grid, text, half=self.half, seed=number)
            if self.admits(plain):
                yield replace(plain, protected=self.protected[number % len(self.protected)],
                              merged=self.merged and number % 3 == 1,
                              has_cls=not (self.without_cls and number // 2 % 2))  # fmt: skip

    def drawn(self) -> SearchStrategy[Situation]:
        """All situations, for hypothesis; small ones come first when it shrinks."""
        st = hypothesis_strategies()

        @st.composite
        def situations(draw: Any) -> Situation:
            side = st.integers(1, 8)
            grid = (draw(side), draw(side)) if self.square is not True else (2 * draw(st.integers(1, 4)),) * 2
            most = min(self.tokens[1], grid[0] * grid[1] if self.stage == "vision" else 45)
            least = min(self.tokens[0], most)
            rows = draw(st.integers(*self.batch))
            if self.ragged is False:
                counts = (draw(st.integers(least, most)),) * rows
            else:
                counts = tuple(draw(st.integers(least, most)) for _ in range(rows))
            text = tuple(draw(st.integers(1, 5)) for _ in range(rows)) if self.stage == "prefill" else ()
            return Situation(
                self.stage, counts, grid if self.stage == "vision" else (6, 6), text,
                protected=draw(st.sampled_from(self.protected)), merged=self.merged and draw(st.booleans()),
                has_cls=not (self.without_cls and draw(st.booleans())), half=self.half, seed=draw(st.integers(0, 99)),
            )  # fmt: skip

        return situations().filter(self.admits)
