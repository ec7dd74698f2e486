"""Rules about what is returned: shapes, indices, budgets, key tokens, and the places at which a strategy acts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokcomp.budget import Budget
from tokcomp.errors import CompatibilityError
from tokcomp.scored import ScoredPolicy
from tokcomp.testing.benches import Bench, Crash
from tokcomp.testing.checks.decisions import breach_of, sound, undeclared
from tokcomp.testing.faults import wrong_indices, wrong_shape
from tokcomp.testing.report import Breach, Unchecked
from tokcomp.testing.search import Search
from tokcomp.testing.situations import Situation, Space

__all__ = ["budget", "indices", "places", "protected", "selection"]

DEPTHS = (4, 8, 12, 24, 32)


def selection(strategy: Any, bench: Bench, search: Search) -> None:
    """Type, shapes and dtypes, and that it runs at all."""

    def test(case: Situation) -> None:
        try:
            decisions = bench.run(strategy, case)
        except Crash as crash:
            if undeclared(crash):
                raise Unchecked("it reads a signal that it does not declare: see the rule 'needs'") from crash
            raise Breach(str(crash), do="make it run on one ordinary sample first") from crash
        for decided in decisions:
            breach_of(wrong_shape(decided, bench.stage), do=(
                "return Selection(keep=...) with integer keep [batch, k], or use Selection.top_k, .from_mask or .merge"
            ))  # fmt: skip
            breach_of(_wrong_memory(decided.view, bench.stage), do="write [batch, heads, entries] into view.memory")

    search(Space(bench.stage, tokens=(8, 40), ragged=False, square=True), test)


def _wrong_memory(view: Any, stage: str) -> str | None:
    """What a cache policy notes moves with the entries; None: that is possible."""
    for name, value in view.memory.items() if stage == "cache" else ():
        if value.shape != view.valid.shape:
            expected = f"expected one number per entry {tuple(view.valid.shape)}"
            return f"view.memory['{name}'] has shape {tuple(value.shape)}, {expected}"
    return None


def indices(strategy: Any, bench: Bench, search: Search) -> None:
    """What the indices say, on samples of equal length."""

    def test(case: Situation) -> None:
        try:
            decisions = bench.run(strategy, case)
        except Crash as crash:
            raise Unchecked(f"{crash}: see the rule 'selection'") from crash
        for decided in decisions:
            if wrong_shape(decided, bench.stage):
                raise Unchecked("its shapes are wrong: see the rule 'selection'")
            breach_of(wrong_indices(decided, bench.stage), do=(
                "indices count the tokens of the view, 0..n-1, each at most once; Selection.top_k and .from_mask see to it"
            ))  # fmt: skip

    search(Space(bench.stage, tokens=(2, 200), ragged=False, square=True), test)


def places(strategy: Any, bench: Bench, search: Search) -> None:
    """Sites or layers, at several depths."""
    acted = False
    for depth in DEPTHS:
        try:
            found = _places(strategy, bench.stage, depth)
        except CompatibilityError:
            continue  # too shallow a model for these fields, which is said in one line
        acted = acted or bool(found)
        layers = [layer for layer in found if isinstance(layer, int)]
        if layers != sorted(layers) or len(set(found)) != len(found):
            raise Breach(f"at depth {depth} it acts at {', '.join(map(str, found))}: not ascending, or twice at one place",
                         do="give every place once, in the order of the flow")  # fmt: skip
        inner = [place if isinstance(place, int) else place.layer for place in found]
        outside = [layer for layer in inner if layer is not None and not 0 <= layer < depth]
        if outside:
            raise Breach(
                f"it acts at layer {outside[0]} of a model with {depth} layers, numbered 0 to {depth - 1}",
                do="resolve a layer against the depth: tokcomp.stages.resolve_layer takes shares and negative numbers",
            )
    if not acted:
        raise Breach(f"it acts nowhere, at none of the depths {', '.join(map(str, DEPTHS))}",
                     do="name at least one place, so that the strategy does something")  # fmt: skip


def _places(strategy: Any, stage: str, depth: int) -> Sequence[Any]:
    if stage == "vision":
        return strategy.sites(depth)
    return strategy.acts_after(depth) if stage == "prefill" else strategy.acts_on(depth)


def _declared_budget(strategy: Any) -> Budget | None:
    given = {name: getattr(strategy, name, None) for name in ("keep_ratio", "keep_tokens")}
    numbers: dict[str, Any] = {name: value for name, value in given.items() if isinstance(value, int | float)}
    return Budget(**numbers) if len(numbers) == 1 else None


def budget(strategy: Any, bench: Bench, search: Search) -> None:
    """As many tokens as keep_ratio or keep_tokens says, once all its places have been passed."""
    declared = _declared_budget(strategy)
    if declared is None:
        return
    if bench.stage == "vision" and len(strategy.sites(4)) != 1:
        return  # what is left after several cuts is not one share of what is seen at any of them

    def test(case: Situation) -> None:
        for view in bench.views(strategy, case):
            for decided in sound(strategy, bench, view)[:1]:
                if decided.selection is None:
                    continue
                kept, counts = _kept(decided.selection, view), view.counts
                wanted = strategy.entries(view) if isinstance(strategy, ScoredPolicy) else declared.resolve(counts)
                kept = kept[:, None].expand_as(wanted) if kept.dim() < wanted.dim() else kept.expand_as(wanted)
                most = wanted + _exempt(strategy, view)
                wrong = ((kept < wanted) | (kept > most)).nonzero()
                if len(wrong):
                    at = tuple(wrong[0].tolist())
                    raise Breach(
                        f"{_told(strategy)} of {int(counts[at])} tokens is {int(wanted[at])}, and {decided.called} keeps "
                        f"{int(kept[at])}",
                        do="let the budget count: self.budget.resolve(view.counts), and Selection.top_k with valid=view.valid",
                    )

    search(Space(bench.stage, tokens=(1, 200)), test)


def _told(strategy: Any) -> str:
    ratio = getattr(strategy, "keep_ratio", None)
    return f"keep_ratio={ratio:g}" if ratio is not None else f"keep_tokens={strategy.keep_tokens}"


def _kept(found: Any, view: Any) -> Tensor:
    """How many tokens are kept ``[b]`` or ``[b, g]``."""
    keep = found.keep.expand(view.batch_size, *found.keep.shape[1:])
    valid = view.valid if view.valid.dim() == keep.dim() else view.valid[:, 0]
    return ((keep >= 0) & valid.gather(-1, keep.clamp(min=0))).sum(dim=-1)


def _exempt(strategy: Any, view: Any) -> Tensor | int:
    """Entries that stay on top of a budget."""
    exempt = strategy.exempt(view) if strategy.stage == "cache" else None
    return 0 if exempt is None else (exempt & view.valid).sum(dim=-1)


def protected(strategy: Any, bench: Bench, search: Search) -> None:
    """Key tokens and exempt entries stay."""

    def test(case: Situation) -> None:
        for view in bench.views(strategy, case):
            must = _must_stay(strategy, view)
            if must is None:
                continue  # nothing has to stay under these fields
            for decided in sound(strategy, bench, view):
                if decided.selection is None:
                    continue
                lost = must & ~_chosen(decided.selection, view)
                if bool(lost.any()):
                    count = int(lost.reshape(lost.shape[0], -1).sum(dim=1).max())
                    raise Breach(f"{decided.called} drops {count} of the tokens that must stay", do=_remedy(strategy))

    search(Space(bench.stage, protected=(0.3, 1.1)), test)


def _remedy(strategy: Any) -> str:
    if strategy.stage == "prefill":
        return "pass protected=view.protected to Selection.top_k where self.respects_protected, or keep mask | view.protected"
    return "pass protected=self.exempt(view) to Selection.top_k: key tokens, and text where keep_text says so"


def _must_stay(strategy: Any, view: Any) -> Tensor | None:
    if strategy.stage == "prefill":
        respects = strategy.of_layer(view.layer, view.depth).respects_protected
        return view.protected & view.valid if respects else None
    exempt = strategy.exempt(view)
    return None if exempt is None else exempt & view.valid


def _chosen(found: Any, view: Any) -> Tensor:
    """Which tokens are kept ``[b, n]`` or ``[b, g, n]``."""
    keep = found.keep.expand(view.batch_size, *found.keep.shape[1:])
    if keep.dim() < view.valid.dim():
        keep = keep[:, None].expand(-1, view.valid.shape[1], -1)
    n = view.valid.shape[-1]
    seen = torch.zeros(*view.valid.shape[:-1], n + 1, dtype=torch.bool)
    return seen.scatter(-1, keep.long().where(keep >= 0, n), True)[..., :n]
