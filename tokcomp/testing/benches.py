"""One bench per stage: shows a strategy fabricated views and reads what it decides, so that a check need not know the stage."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tokcomp.errors import CompatibilityError, StateError
from tokcomp.ops.merging import apply_selection
from tokcomp.stages import Strategy
from tokcomp.testing import cache_views, prefill_views, vision_views
from tokcomp.testing.report import Holding, Unchecked
from tokcomp.testing.situations import Situation
from tokcomp.types import CacheView, PrefillView, Selection, Signal, VisionView

__all__ = ["BENCHES", "Bench", "Crash", "Decided"]

VISION_DEPTH, DEPTH = 4, 8
"""Blocks of the imagined tower and layers of the imagined language model."""


class Crash(Exception):
    """A strategy raised an exception."""

    def __init__(self, error: Exception, called: str) -> None:
        self.error, self.called = error, called
        text = " ".join(str(error).split())
        super().__init__(f"{called} raised {type(error).__name__}: {text}")


@dataclasses.dataclass(frozen=True)
class Decided:
    """One view and what a strategy returned for it; ``called`` names the method."""

    view: Any
    selection: Any
    called: str


class Bench(ABC):
    """What all stages share."""

    stage: str
    method: str

    @abstractmethod
    def views(self, strategy: Any, situation: Situation) -> list[Any]:
        """A view for every place where the strategy acts."""

    @abstractmethod
    def ask(self, strategy: Any, view: Any) -> list[tuple[str, Callable[[], Any]]]:
        """The calls that decide about one view, by the method's name."""

    @abstractmethod
    def alone(self, strategy: Any, view: Any, row: int) -> Any:
        """One sample of a view as it would come without the others."""

    @abstractmethod
    def outcome(self, selection: Selection | None, view: Any, row: int) -> Any:
        """What a selection means for one sample, without padding, to be compared."""

    @abstractmethod
    def merged(self, selection: Selection, view: Any) -> Tensor:
        """The states that a selection leaves ``[..., k, d]``."""

    def later(self, strategy: Any, view: Any, seed: int) -> Any | None:
        """The view with other contents behind the query; None: it shows nothing of the kind."""
        return None

    def decide(self, strategy: Strategy, view: Any) -> list[Decided]:
        """Every decision about one view.

        Raises:
            Unchecked: the strategy refuses such input, or tried to keep something on itself.
            Crash: it raised anything else.
        """
        decided = []
        called = f"{self.method}()"
        try:
            for called, call in self.ask(strategy, view):
                decided.append(Decided(view, call(), called))
        except CompatibilityError as refusal:
            raise Unchecked(f"it refuses such input: {refusal}") from refusal
        except StateError as error:
            raise Holding() from error
        except (Unchecked, AssertionError):
            raise
        except Exception as error:
            raise Crash(error, called) from error
        return decided

    def run(self, strategy: Strategy, situation: Situation) -> list[Decided]:
        """Every decision in one situation."""
        return [decided for view in self.views(strategy, situation) for decided in self.decide(strategy, view)]

    @staticmethod
    def tensors(view: Any) -> dict[str, Tensor]:
        """The tensors of a view by the name under which a strategy reads them."""
        found = {field.name.lstrip("_"): getattr(view, field.name) for field in dataclasses.fields(view)}
        for block, signals in getattr(view, "_elsewhere", {}).items():
            found |= {f"at({block}).{name.lstrip('_')}": value for name, value in signals.items()}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    @staticmethod
    def moved(view: Any, move: Callable[[Tensor], Tensor]) -> Any:
        """The view with every tensor moved."""

        def through(value: Any) -> Any:
            if isinstance(value, Tensor):
                return move(value)
            if isinstance(value, Mapping):
                return {key: through(each) for key, each in value.items()}
            if isinstance(value, cache_views.Rows):
                return cache_views.Rows(move(value.attention), move(value.real))
            return value

        moved = {field.name: through(getattr(view, field.name)) for field in dataclasses.fields(view)}
        rotation = moved.get("_rotation")
        if rotation is not None:
            moved["_rotation"] = lambda steps: move(rotation(steps))
        return dataclasses.replace(view, **moved)


class _Vision(Bench):
    stage, method = "vision", "reduce"

    def views(self, strategy: Any, situation: Situation) -> list[VisionView]:
        if not situation.has_cls and strategy.refuses_without_cls():
            raise Unchecked("it refuses towers without CLS token")
        return [
            vision_views.random_view(
                situation.counts, situation.grid, reducer=strategy, site=site, depth=VISION_DEPTH,
                seed=situation.seed + number, dtype=situation.dtype, merged=situation.merged,
                protected=situation.protected, has_cls=situation.has_cls,
            )
            for number, site in enumerate(strategy.sites(VISION_DEPTH))
        ]  # fmt: skip

    def ask(self, strategy: Any, view: VisionView) -> list[tuple[str, Callable[[], Any]]]:
        return [("reduce()", lambda: strategy.reduce(view))]

    def alone(self, strategy: Any, view: VisionView, row: int) -> VisionView:
        return vision_views.alone(view, row)

    def outcome(self, selection: Selection | None, view: VisionView, row: int) -> Any:
        assert selection is not None
        return vision_views.decision(selection, view, row)

    def merged(self, selection: Selection, view: VisionView) -> Tensor:
        return apply_selection(view.tokens, view.sizes, selection, cls_token=view._cls_token)[0]


class _Prefill(Bench):
    stage, method = "prefill", "filter"

    def views(self, strategy: Any, situation: Situation) -> list[PrefillView]:
        layers = strategy.acts_after(DEPTH)
        if not layers:
            return []
        acting = strategy.of_layer(layers[0], DEPTH)
        if acting.guided_by() is not None and not min(situation.text, default=1):
            raise Unchecked("it refuses prompts without text after the image")
        view = prefill_views.random_view(
            situation.counts, filter=strategy, rows=situation.text or None, layer=layers[0], depth=DEPTH,
            seed=situation.seed, dtype=situation.dtype, protected=situation.protected,
        )  # fmt: skip
        return [view]

    def ask(self, strategy: Any, view: PrefillView) -> list[tuple[str, Callable[[], Any]]]:
        return [("filter()", lambda: strategy.filter(view))]

    def alone(self, strategy: Any, view: PrefillView, row: int) -> PrefillView:
        single = dataclasses.replace(prefill_views.alone(dataclasses.replace(view, memory={}), row), memory={})
        prefill_views.prepare(strategy.of_layer(view.layer, view.depth), single)
        return single

    def outcome(self, selection: Selection | None, view: PrefillView, row: int) -> Any:
        assert selection is not None
        wide = dataclasses.replace(selection, keep=selection.keep.expand(view.batch_size, -1))
        return prefill_views.kept(wide, view, row)

    def merged(self, selection: Selection, view: PrefillView) -> Tensor:
        return apply_selection(view.tokens, view.sizes, selection)[0]

    def later(self, strategy: Any, view: PrefillView, seed: int) -> PrefillView | None:
        if view._text is None:
            return None
        changed = prefill_views.with_later_text(view, seed)
        prefill_views.prepare(strategy.of_layer(view.layer, view.depth), changed)
        return changed


class _Cache(Bench):
    stage, method = "cache", "after_prefill"

    def views(self, strategy: Any, situation: Situation) -> list[CacheView]:
        layers = strategy.acts_on(DEPTH)
        if not layers:
            return []
        policy = strategy.of_layer(layers[-1], DEPTH)
        view = cache_views.random_view(
            situation.counts, policy=policy, layer=layers[-1], depth=DEPTH, generated=1, seed=situation.seed,
            dtype=situation.dtype, protected=situation.protected,
        )  # fmt: skip
        return [view]

    def ask(self, strategy: Any, view: CacheView) -> list[tuple[str, Callable[[], Any]]]:
        policy = strategy.of_layer(view.layer, view.depth)
        calls = [("after_prefill()", lambda: strategy.after_prefill(view))]
        if strategy.decodes():
            calls.append(("after_step()", lambda: strategy.after_step(view)))
        if Signal.SURVEY not in policy.signals():
            return calls
        policy.survey(view)
        return calls

    def alone(self, strategy: Any, view: CacheView, row: int) -> CacheView:
        return cache_views.alone(view, row)

    def outcome(self, selection: Selection | None, view: CacheView, row: int) -> Any:
        if selection is not None:
            heads = view.batch_size if selection.keep.shape[0] == 1 else selection.keep.shape[0]
            selection = dataclasses.replace(selection, keep=selection.keep.expand(heads, *selection.keep.shape[1:]))
        return cache_views.kept(selection, view, row)

    def merged(self, selection: Selection, view: CacheView) -> Tensor:
        if selection.keep.dim() == 2:
            raise Unchecked("a selection for all heads at once is merged by the runner")
        return apply_selection(view.values, torch.ones_like(view.valid, dtype=torch.float32), selection)[0]

    def later(self, strategy: Any, view: CacheView, seed: int) -> CacheView | None:
        rows = view._attention_rows
        if not isinstance(rows, cache_views.Rows):
            return None
        return dataclasses.replace(view, memory={}, _attention_rows=rows.with_later(seed))


BENCHES: dict[str, Bench] = {bench.stage: bench for bench in (_Vision(), _Prefill(), _Cache())}
