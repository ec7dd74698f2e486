"""One function per rule: ``check(strategy, bench, search)`` returns figures, or raises what it found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tokcomp.testing.benches import Bench
from tokcomp.testing.checks import conduct, configuration, cost, edges, elsewhere, running, selections, signals
from tokcomp.testing.search import Search

__all__ = ["CHECKS"]

CHECKS: Mapping[str, Callable[[Any, Bench, Search], dict[str, str] | None]] = {
    "selection": selections.selection,
    "indices": selections.indices,
    "places": selections.places,
    "budget": selections.budget,
    "protected": selections.protected,
    "needs": signals.needs,
    "state": conduct.state,
    "inputs": conduct.inputs,
    "batch": conduct.batch,
    "device": elsewhere.device,
    "determinism": conduct.determinism,
    "future": signals.future,
    "one-token": edges.one_token,
    "odd-grid": edges.odd_grid,
    "ragged-batch": edges.ragged_batch,
    "bfloat16": edges.bfloat16,
    "pickle": configuration.pickled,
    "config": configuration.config,
    "description": configuration.description,
    "cost": cost.cost,
    "model": running.model,
}
"""By the name of the rule."""
