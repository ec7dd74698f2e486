"""The dry run of each stage: the real strategies, asked on made-up content, one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tokcomp.errors import ConfigurationError, UnsupportedError
from tokcomp.measure.assumptions import Assumptions
from tokcomp.measure.execution import image_work, reducer_scores
from tokcomp.measure.probes import CONTENTS, Alive, Content, prefill_view, vision_view
from tokcomp.measure.shape import ModelShape
from tokcomp.measure.workload import ImageWork, ScoreWork, require_tower
from tokcomp.runner.apply import with_protected
from tokcomp.selection import Selection
from tokcomp.stages import PrefillFilter, VisionReducer
from tokcomp.types import Site

__all__ = ["Prompt", "States", "prefill_schedule", "vision_schedule"]

States = tuple[Alive, ...]
"""The tokens left, one state per made-up content; all have the same number of tokens."""


@dataclass(frozen=True)
class Prompt:
    """Tokens of a prompt: text before the image, the image's placeholders, text after it."""

    before: int
    placeholders: int
    after: int

    @property
    def text(self) -> int:
        return self.before + self.after


def _advance(states: States, ask: Callable[[Content, Alive], Selection], assumed: Callable[[], float]) -> States:
    """What a strategy leaves of each content; where the counts differ between contents, what is assumed."""
    selections = [ask(content, state) for content, state in zip(CONTENTS, states, strict=True)]
    left = tuple(state.take(selection) for state, selection in zip(states, selections, strict=True))
    if len({state.n for state in left}) == 1:
        return left
    tokens = assumed()
    return tuple(state if tokens >= state.count else state.first(tokens) for state in states)


def vision_schedule(shape: ModelShape, reducer: VisionReducer | None, image_tokens: int, grid: tuple[int, int] | None,
                    assumptions: Assumptions) -> tuple[ImageWork, States, tuple[ScoreWork, ...]]:  # fmt: skip
    """One image through the tower and the projector.

    Raises:
        ConfigurationError: the counts depend on the content and none is assumed, or the grid does not fit.
        UnsupportedError: a reducer inside a tower whose patches are merged afterwards.
    """
    tower = require_tower(shape)
    sites = reducer.sites(tower.blocks) if reducer is not None else ()
    if reducer is not None and shape.merge > 1 and any(site.place != Site.projected() for site in sites):
        raise UnsupportedError(
            f"'{reducer.name}' acts inside a '{shape.family}' tower, whose patches are merged {shape.merge} to 1 "
            "afterwards: its counts can only be recorded in a run"
        )
    rows_columns = _grid(shape, image_tokens, grid)

    def visit(place: Site, states: States) -> States:
        for site in sites:
            if reducer is not None and site.place == place:
                states = _advance(states, partial(ask, site), lambda: assumptions.use("vision", reducer))
        return states

    def ask(site: Site, content: Content, alive: Alive) -> Selection:
        assert reducer is not None
        return reducer.reduce(
            vision_view(content, reducer, site, tower.blocks, alive, grid=rows_columns, n_prefix=tower.prefix)
        )

    states: States = (Alive.all(image_tokens),) * len(CONTENTS)
    entering: list[float] = [image_tokens * shape.merge + tower.prefix]
    for block in range(tower.blocks):
        # Behind the feature layer the tower itself is not shortened any more: decisions there fall on the features.
        behind = shape.feature_block is not None and block > shape.feature_block
        states = states if behind else visit(Site.mid(block), states)
        states = visit(Site.block(block), states)
        entering.append(entering[-1] if behind else states[0].count * shape.merge + tower.prefix)
    states = visit(Site.features(), states)
    image = image_work(shape, reducer, entering, states[0].count + (tower.prefix if shape.feature_prefix else 0))
    return image, visit(Site.projected(), states), reducer_scores(shape, reducer, entering)


def _grid(shape: ModelShape, image_tokens: int, grid: tuple[int, int] | None) -> tuple[int, int]:
    known = shape.tower.grid if shape.tower else None
    if grid is None and known is not None and known[0] * known[1] == image_tokens:
        return known
    side = math.isqrt(image_tokens)
    rows, columns = grid or (side, side)
    if rows * columns != image_tokens:
        raise ConfigurationError(
            f"{image_tokens} image tokens are no grid of {rows} x {columns}: give grid=(rows, columns)"
        )
    return rows, columns


def prefill_schedule(shape: ModelShape, strategy: PrefillFilter | None, states: States, prompt: Prompt,
                     assumptions: Assumptions) -> tuple[States, ...]:  # fmt: skip
    """The prompt through the language model's layers: the vision tokens that enter each layer and, last, those that
    leave the last one.

    Raises:
        ConfigurationError: the counts depend on the content and none is assumed, or the assumed mean cannot be.
    """
    history = [states]
    acting = frozenset() if strategy is None else frozenset(strategy.acts_after(shape.layers))
    for layer in range(shape.layers):
        if strategy is None or layer not in acting:
            history.append(history[-1])
        else:
            history.append(_filtered(shape, strategy, layer, history, prompt, assumptions))
    return tuple(history)


def _filtered(shape: ModelShape, strategy: PrefillFilter, layer: int, history: Sequence[States], prompt: Prompt,
              assumptions: Assumptions) -> States:  # fmt: skip
    acting = strategy.of_layer(layer, shape.layers)

    def ask(content: Content, alive: Alive) -> Selection:
        view = prefill_view(
            content, acting, layer, shape.layers, alive, initial=history[0][0].n,
            text_before=prompt.before, text_after=prompt.after,
        )  # fmt: skip
        selection = acting.filter(view)
        return with_protected(selection, alive.protected) if acting.respects_protected else selection

    def assumed() -> float:
        """The number left from here on that brings the mean of all layers' outputs to the assumed one."""
        already = "prefill" in assumptions.used
        mean = assumptions.use("prefill", strategy)
        if already:
            return history[-1][0].count
        before = sum(states[0].count for states in history[1:])
        rest = (mean * shape.layers - before) / (shape.layers - layer)
        entering = history[-1][0].count
        keys = max(int(state.protected.sum()) for state in history[-1]) if acting.respects_protected else 0
        if not max(1, keys - 0.5) <= rest <= entering:
            raise ConfigurationError(
                f"a mean of {mean:g} vision tokens cannot be: {entering:g} enter layer {layer}, the first at which "
                f"'{strategy.name}' acts, {keys} of them are key tokens, and {rest:.1f} would have to be left in the "
                f"layers after it; assume {'fewer' if rest > entering else 'more'} prefill tokens or "
                f"{'more' if rest > entering else 'fewer'} vision tokens"
            )
        return rest

    return _advance(history[-1], ask, assumed)
