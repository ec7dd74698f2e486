"""Rules about how a strategy decides: no state, no traces in its inputs, no neighbours, no dice."""

from __future__ import annotations

import functools
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokcomp.stages import CachePolicy, PrefillFilter, Strategy, VisionReducer
from tokcomp.testing.benches import Bench
from tokcomp.testing.checks.decisions import crashed, needs_no_cls, sound
from tokcomp.testing.instances import fresh
from tokcomp.testing.report import Breach, Holding
from tokcomp.testing.search import Search
from tokcomp.testing.situations import Situation, Space

__all__ = ["batch", "determinism", "inputs", "state"]


def state(strategy: Any, bench: Bench, search: Search) -> None:
    """The same answer whatever was asked before, and nothing new on the instance or its class."""

    def test(case: Situation) -> None:
        other = Situation(case.stage, case.counts, case.grid, case.text, seed=case.seed + 1000)
        used, unused = fresh(strategy), fresh(strategy)
        before = _held(used)
        try:
            for first, second in zip(bench.views(used, other), bench.views(used, case), strict=True):
                crashed(used, bench, first)
                _compare(bench, sound(used, bench, second), sound(unused, bench, second))
        except Holding as held:
            raise Breach(str(held.__cause__), do=_STATELESS) from held
        changed = sorted(name for name, value in _held(used).items() if before.get(name) != value)
        if changed:
            raise Breach(f"after a call it holds something new in {', '.join(changed)}", do=_STATELESS)

    def _compare(bench: Bench, after: Any, alone: Any) -> None:
        for one, two in zip(after, alone, strict=True):
            for row in range(one.view.batch_size):
                if bench.outcome(one.selection, one.view, row) != bench.outcome(two.selection, two.view, row):
                    raise Breach(f"{one.called} decides differently after it has seen another input", do=_STATELESS)

    search(Space(bench.stage, tokens=(2, 40)), test)


_STATELESS = (
    "one strategy serves many requests at once: keep nothing on self, its class or its module; what must live across "
    "layers or steps goes into view.memory"
)


def _held(strategy: Strategy) -> dict[str, Any]:
    """Everything that an instance and its classes hold, in a form that can be compared."""
    cached = {name for cls in type(strategy).__mro__ for name, value in vars(cls).items()
              if isinstance(value, functools.cached_property)}  # fmt: skip
    held = {f"self.{name}": value for name, value in vars(strategy).items() if name not in cached}
    held |= {f"self.{name}": value for name, value in (strategy.__pydantic_private__ or {}).items()}
    bases = {VisionReducer, PrefillFilter, CachePolicy, *Strategy.__mro__}
    for cls in type(strategy).__mro__:
        if cls not in bases:
            held |= {f"{cls.__name__}.{name}": value for name, value in vars(cls).items()
                     if not name.startswith(("__", "model_", "_abc")) and isinstance(value, _CONTAINERS)}  # fmt: skip
    return {name: _fingerprint(value) for name, value in held.items()}


_CONTAINERS = (dict, list, set, Tensor, int, float, str, tuple, bytes, type(None), random.Random, torch.Generator)


def _fingerprint(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    try:
        return pickle.dumps(value)
    except Exception:  # what cannot be pickled is told apart by what it is printed as
        return repr(value)


def inputs(strategy: Any, bench: Bench, search: Search) -> None:
    """The tensors of the view afterwards."""

    def test(case: Situation) -> None:
        for view in bench.views(strategy, case):
            before = {name: value.clone() for name, value in bench.tensors(view).items()}
            crashed(strategy, bench, view, copy=False)
            for name, value in bench.tensors(view).items():
                if not torch.equal(value.nan_to_num(), before[name].nan_to_num()):
                    raise Breach(
                        f"{bench.method}() changes view.{name} in place",
                        do="the tensors belong to the model: use the forms without underscore (masked_fill, scatter), or clone",
                    )

    search(Space(bench.stage), test)


def batch(strategy: Any, bench: Bench, search: Search) -> None:
    """A batch beside its samples one by one."""

    def test(case: Situation) -> None:
        for view in bench.views(strategy, case):
            together = sound(strategy, bench, view)
            merged = [None if one.selection is None or one.selection.assign is None else
                      bench.merged(one.selection, view) for one in together if _mergeable(bench, one)]  # fmt: skip
            for row in range(view.batch_size):
                single = bench.alone(strategy, view, row)
                apart = sound(strategy, bench, single)
                for one, two in zip(together, apart, strict=True):
                    ours, own = bench.outcome(one.selection, view, row), bench.outcome(two.selection, single, 0)
                    if ours != own:
                        raise Breach(
                            f"{one.called} decides about sample {row} of a batch otherwise than about the sample alone "
                            f"({_brief(ours)} instead of {_brief(own)})",
                            do=_APART,
                        )
                for states, two in zip(merged, (one for one in apart if _mergeable(bench, one)), strict=False):
                    if states is not None:
                        _same_states(states, bench.merged(two.selection, single), row, two.called)

    search(
        Space(bench.stage, protected=(0.0, 0.3), merged=bench.stage == "vision", without_cls=needs_no_cls(strategy)),
        test,
    )


_APART = (
    "let every sample decide for itself: no minimum, mean or sort over the batch, view.valid wherever padding could "
    "count, view.counts in place of view.n_tokens"
)


def _mergeable(bench: Bench, decided: Any) -> bool:
    found = decided.selection
    return found is not None and (bench.stage != "cache" or found.keep.dim() == 3)


def _same_states(together: Tensor, alone: Tensor, row: int, called: str) -> None:
    k = alone.shape[-2]
    if not torch.allclose(
        together[row : row + 1, ..., :k, :].float(), alone.float(), atol=1e-5, rtol=1e-4, equal_nan=True
    ):
        raise Breach(f"what {called} merges in sample {row} of a batch differs from what it merges in the sample alone",
                     do=_APART)  # fmt: skip


def _brief(outcome: Any) -> str:
    kept = outcome[0] if isinstance(outcome, tuple) else outcome
    text = str(kept)
    return f"keeps {text if len(text) < 60 else text[:57] + '...'}"


def determinism(strategy: Any, bench: Bench, search: Search) -> None:
    """Twice the same view, with other seeds."""

    def test(case: Situation) -> None:
        for view in bench.views(strategy, case):
            with _seeded(1) as touched:
                first = sound(fresh(strategy), bench, view)
                drawn = touched()
            with _seeded(2):
                second = sound(fresh(strategy), bench, view)
            if drawn:
                raise Breach(f"{bench.method}() draws from the global generator of {drawn}: the same view may get another "
                             "selection the second time", do=_SEEDED)  # fmt: skip
            for one, two in zip(first, second, strict=True):
                for row in range(view.batch_size):
                    if bench.outcome(one.selection, view, row) != bench.outcome(two.selection, view, row):
                        raise Breach(f"{one.called} gives the same view another selection the second time", do=_SEEDED)

    search(Space(bench.stage, tokens=(2, 40), batch=(1, 2)), test)


_SEEDED = (
    "declare Signal.DIGEST and hash view.digest (tokcomp.ops.hashing): the same numbers on every device and in every "
    "batch, with no generator touched"
)


@contextmanager
def _seeded(seed: int) -> Iterator[Callable[[], str]]:
    """All global generators seeded, and put back afterwards; the value tells which of them was used."""
    own, dice = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed looks for devices first, which takes a while
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        before = _generators()
        try:
            yield lambda: ", ".join(name for name, state in _generators().items() if state != before[name])
        finally:
            random.setstate(own)
            np.random.set_state(dice)  # noqa: NPY002


def _generators() -> dict[str, Any]:
    """The state of every global generator."""
    dice: Any = np.random.get_state()  # noqa: NPY002
    return {"torch": torch.get_rng_state().numpy().tobytes(), "random": random.getstate(),
            "numpy": (dice[1].tobytes(), dice[2])}  # fmt: skip
