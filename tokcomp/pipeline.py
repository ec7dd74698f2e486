"""A pipeline: at most one strategy per stage, attached to a model for the length of a ``with`` block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokcomp.errors import ConfigurationError
from tokcomp.specs import StrategySpec, build_strategy
from tokcomp.stages import CachePolicy, PrefillFilter, Strategy, VisionReducer

if TYPE_CHECKING:
    from torch import nn

    from tokcomp.runner.session import Session

__all__ = ["Pipeline", "build_strategy"]


class Pipeline:
    """Three strategies, any of them absent, that act one after the other on one table of tokens.

    Args:
        vision, prefill, cache: for each stage a registered name, a name with its fields
            (``{"name": "fastv", "layer": 2, "keep_ratio": 0.5}``), a strategy object, or None / ``"none"``.

    Raises:
        ConfigurationError: an unknown name or field, or a value out of range.

    Examples:
        >>> pipeline = Pipeline(vision="mustdrop", prefill={"name": "fastv", "layer": 2, "keep_ratio": 0.5})
        >>> with pipeline.attach(model) as trace:  # doctest: +SKIP
        ...     out = model.generate(**inputs)
        >>> print(trace.last.summary())  # doctest: +SKIP
    """

    vision: VisionReducer | None
    prefill: PrefillFilter | None
    cache: CachePolicy | None

    def __init__(self, vision: StrategySpec = None, prefill: StrategySpec = None, cache: StrategySpec = None) -> None:
        self.vision = build_strategy("vision", vision)
        self.prefill = build_strategy("prefill", prefill)
        self.cache = build_strategy("cache", cache)

    @classmethod
    def from_preset(cls, name: str, **stages: StrategySpec) -> Pipeline:
        """The pipeline of ``configs/preset/<name>.yaml``; stages given by keyword replace the preset's.

        Raises:
            ConfigurationError: no such preset.
        """
        from tokcomp.experiment.presets import load_preset

        return cls(**{**load_preset(name), **stages})

    def spec(self) -> dict[str, dict[str, object] | None]:
        """The pipeline as plain data: ``Pipeline(**pipeline.spec())`` is the same pipeline."""
        stages: dict[str, Strategy | None] = {"vision": self.vision, "prefill": self.prefill, "cache": self.cache}
        return {stage: None if strategy is None else strategy.spec() for stage, strategy in stages.items()}

    def attach(self, model: nn.Module) -> Session:
        """A context manager inside which ``model`` runs compressed: ``generate()``, ``forward()``, streamers, all unchanged.

        On entry the needs of the strategies are checked against the model; on exit, also after an exception, every hook
        and setting is undone. The value of ``with ... as trace`` records what happened to the tokens of each prompt.

        Raises:
            ConfigurationError: what was given is no model.
            UnsupportedError: on entry, the model untouched: no adapter fits it, or a pipeline is attached to it already.
            CompatibilityError: on entry, the model untouched: a strategy needs what it does not have.
        """
        from torch import nn

        from tokcomp.runner.session import Session

        given: object = model
        if not isinstance(given, nn.Module):
            got = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
            raise ConfigurationError(f"attach takes a model that is loaded (a torch.nn.Module), got {got}")
        return Session(model, self.vision, self.prefill, self.cache)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pipeline) and self.spec() == other.spec()

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        stages = {"vision": self.vision, "prefill": self.prefill, "cache": self.cache}
        return f"Pipeline({', '.join(f'{stage}={_short(strategy)}' for stage, strategy in stages.items())})"


def _short(strategy: Strategy | None) -> str:
    if strategy is None:
        return "None"
    given = {name: getattr(strategy, name) for name in sorted(strategy.model_fields_set)}
    return repr({"name": strategy.name, **given} if given else strategy.name)
