"""Rules about a strategy as a value: its way through pickle, files and the command line, and what it says of itself."""

from __future__ import annotations

import copy
import pickle
from typing import Any

from omegaconf import OmegaConf
from pydantic import ValidationError

from tokcomp.errors import TokcompError
from tokcomp.registry import REGISTRIES
from tokcomp.specs import build_strategy
from tokcomp.testing.benches import Bench
from tokcomp.testing.report import Breach
from tokcomp.testing.rules import RULES
from tokcomp.testing.search import Search

__all__ = ["config", "description", "pickled"]


def pickled(strategy: Any, bench: Bench, search: Search) -> None:
    """pickle and copy give an equal strategy."""
    try:
        twin = pickle.loads(pickle.dumps(strategy))
    except Exception as error:
        raise Breach(
            f"it cannot be pickled: {type(error).__name__}: {error}",
            do="define the class at the top level of a module, with fields of plain values: sweeps send it to other processes",
        ) from error
    for name, other in (("pickle", twin), ("copy.deepcopy", copy.deepcopy(strategy))):
        if other != strategy:
            raise Breach(f"{name} gives back a strategy that is not equal to it",
                         do="let all that matters be a field: equality, copies and pickles go by fields")  # fmt: skip


def config(strategy: Any, bench: Bench, search: Search) -> None:
    """spec -> YAML -> strategy is the identity, and wrong fields are refused."""
    try:
        spec = strategy.spec()
        written = OmegaConf.to_yaml(OmegaConf.create(spec))
    except Exception as error:
        raise Breach(f"its fields cannot be written to YAML: {type(error).__name__}: {error}", do=_PLAIN) from error
    read: Any = OmegaConf.to_container(OmegaConf.create(written), resolve=True)
    try:
        twin = _built(strategy, read)
    except (TokcompError, ValidationError) as error:
        text = " ".join(str(error).split())
        raise Breach(f"what it writes into a configuration it does not read back: {text}", do=_PLAIN) from error
    if twin != strategy or twin.spec() != spec:
        changed = [name for name, value in spec.items() if twin.spec().get(name) != value]
        what = (
            f"the fields {', '.join(changed)} come back changed"
            if changed
            else "the strategy that comes back is not equal"
        )
        raise Breach(f"written to YAML and read back, {what}", do=_PLAIN)
    _refuses_wrong_fields(strategy, read)


_PLAIN = (
    "give fields types that YAML knows (numbers, strings, booleans, lists, tokcomp.specs for strategies inside), and let "
    "validators accept what they return"
)


def _built(strategy: Any, spec: dict[str, Any]) -> Any:
    registry = REGISTRIES[strategy.stage]
    if strategy.name and registry.get(strategy.name) is type(strategy):
        return build_strategy(strategy.stage, spec)
    return type(strategy)(**{name: value for name, value in spec.items() if name != "name"})


def _refuses_wrong_fields(strategy: Any, spec: dict[str, Any]) -> None:
    fields = {name: value for name, value in spec.items() if name != "name"}
    try:
        type(strategy)(**fields, no_such_field=1)
    except (ValidationError, TypeError):
        pass
    else:
        raise Breach("it takes a field that does not exist, so that a slip of the pen goes unnoticed",
                     do='leave extra="forbid" in model_config')  # fmt: skip
    name = next(iter(type(strategy).model_fields), None)
    if name is None:
        return
    try:
        setattr(copy.deepcopy(strategy), name, getattr(strategy, name))
    except (ValidationError, TypeError, AttributeError):
        return
    raise Breach(f"its field {name} can be set after it was made", do="leave frozen=True in model_config")


def description(strategy: Any, bench: Bench, search: Search) -> None:
    """A docstring of its own, and a description for every field."""
    cls = type(strategy)
    if not (vars(cls).get("__doc__") or "").strip():
        raise Breach("it has no docstring",
                     do="say what it does in one line: `tokcomp list`, `tokcomp show` and the site print it")  # fmt: skip
    for name in strategy.departures():
        if name not in RULES or not RULES[name].negotiable:
            free = ", ".join(rule.name for rule in RULES.values() if rule.negotiable)
            raise Breach(f"it says that it departs from '{name}', which it cannot", do=f"keep to the rule: only {free} may be "
                         "departed from")  # fmt: skip
    silent = [name for name, field in cls.model_fields.items() if not field.description]
    if silent:
        raise Breach(f"its field{'s' if len(silent) > 1 else ''} {', '.join(silent)} have no description".replace(
            "field " + silent[0] + " have", "field " + silent[0] + " has"),
            do="write Field(default=..., description=...), with bounds where there are any")  # fmt: skip
